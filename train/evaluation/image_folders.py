"""The test images of the four image-retrieval benchmarks, from the folders as they are published.

Each benchmark lists its images in text files, with their classes. The lists are not ours: a path that leads out of
the folder is refused. Images that a list names and the folder lacks are counted and named by the task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.evaluation.lines import read_rows, split_line
from train.evaluation.result import DataSetError

CUB_TEST: Final = range(101, 201)
"""The classes of CUB-200-2011 that retrieval is tested on; the first hundred are for training."""


LARGEST_FILE: Final = 256 << 20
"""Bytes; a larger file is no image of these data sets, and is not read."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with classes."""

    title: str
    names: list[str]
    labels: NDArray[np.str_]
    """(n,) the class of each."""
    queries: NDArray[np.bool_] | None = None
    """(n,) which are queries against the others, the gallery; None: each is a query against all others."""
    read: Callable[[int], bytes]
    """Return the bytes of an image file by its place in `names`, in any thread; raises `OSError`."""


class ListedImage(NamedTuple):
    """An image as a list file names it."""

    path: str
    label: str
    query: bool = False


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published data set: how to recognise and read its folder, and the size of its test set."""

    title: str
    folders: tuple[str, ...]
    """Usual names of the unpacked folder."""
    lists: tuple[str, ...]
    """The file by which the folder is recognised: one of these paths in it."""
    parse: Callable[[Path, Path], tuple[Path, list[ListedImage]]]
    """From the folder and its list file to the folder that paths start from, and the test images."""
    images: int
    classes: int
    has_queries: bool = False
    where: str
    layout: str


def open_benchmark(benchmark: Benchmark, folder: Path) -> LabelledImages:
    """Return the test images of a benchmark, which lies in `folder` or in a folder of its usual name there.

    Raises:
        DataSetError: it is missing (the message says where to get it, and the layout), or its lists are broken.
    """
    for root in (folder, *(folder / name for name in benchmark.folders)):
        for name in benchmark.lists:
            if (root / name).is_file():
                return _labelled(benchmark, *benchmark.parse(root, root / name))
    expected = f"{benchmark.layout}, in it or in its folder {' or '.join(benchmark.folders)}"
    advice = f"Get it from {benchmark.where}."
    raise DataSetError("not there", path=folder, where=benchmark.title, expected=expected, advice=advice)


def _labelled(benchmark: Benchmark, base: Path, listed: list[ListedImage]) -> LabelledImages:
    if not listed:
        raise DataSetError("no test image is listed", path=base, where=benchmark.title, expected=benchmark.layout)
    names, labels, queries = zip(*listed, strict=True)
    return LabelledImages(
        title=benchmark.title,
        names=list(names),
        labels=np.array(labels, np.str_),
        queries=np.array(queries) if benchmark.has_queries else None,
        read=lambda place: _read(base / names[place]),
    )


def _read(path: Path) -> bytes:
    if not path.is_file():  # a folder, or a pipe, which would never end
        raise FileNotFoundError("no such file")
    with path.open("rb") as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise OSError(f"it is larger than {LARGEST_FILE >> 20} MiB")
    return data


def _inside(path: str, file: Path, number: int) -> str:
    """Return the path that line `number` of a list lists if it stays in the folder, whichever way its slashes lean."""
    pure = PureWindowsPath(path)
    if pure.anchor or ".." in pure.parts or not pure.parts or "\0" in path:
        raise DataSetError(path=file, where=number, found=path, expected="a path within the data set's folder")
    return path


def _cub(root: Path, images: Path) -> tuple[Path, list[ListedImage]]:
    """images.txt: `<number> <path>`; image_class_labels.txt: `<number> <class>`."""
    classes: dict[str, int] = {}
    labels = root / "image_class_labels.txt"
    for number, line in enumerate(read_rows(labels), start=1):
        image, label, *_ = split_line(labels, number, line, 2, "<image number> <class number>")
        if not label.isdecimal():
            raise DataSetError("class", path=labels, where=number, found=label, expected="its number")
        classes[image] = int(label)
    listed = []
    for number, line in enumerate(read_rows(images), start=1):
        image, path, *_ = split_line(images, number, line, 2, "<image number> <path>")
        if image not in classes:
            raise DataSetError("image", path=images, where=number, found=image, expected=f"one of {labels}")
        if classes[image] in CUB_TEST:
            listed.append(ListedImage(_inside(path, images, number), str(classes[image])))
    return root / "images", listed


def _sop(root: Path, test: Path) -> tuple[Path, list[ListedImage]]:
    """Ebay_test.txt: a header, then `<image> <class> <super-class> <path>`."""
    listed = []
    for number, line in enumerate(read_rows(test)[1:], start=2):
        _, label, _, path, *_ = split_line(test, number, line, 4, "<image> <class> <super-class> <path>")
        listed.append(ListedImage(_inside(path, test, number), label))
    return root, listed


def _in_shop(root: Path, partition: Path) -> tuple[Path, list[ListedImage]]:
    """list_eval_partition.txt: the number of rows, a header, then `<path> <item> <train, query or gallery>`."""
    lines = read_rows(partition)
    count, rows = lines[0].strip() if lines else "", lines[2:]
    if count != str(len(rows)):
        raise DataSetError(path=partition, where=1, found=count, expected=f"the number of rows, {len(rows)}")
    listed = []
    for number, line in enumerate(rows, start=3):
        path, label, status, *_ = split_line(partition, number, line, 3, "<path> <item> <train, query or gallery>")
        if status not in ("train", "query", "gallery"):
            raise DataSetError(path=partition, where=number, found=status, expected="train, query or gallery")
        if status != "train":
            listed.append(ListedImage(_inside(path, partition, number), label, status == "query"))
    # The listed paths begin with img/, which the published archive unpacks within Img/.
    return (root / "Img" if (root / "Img" / "img").is_dir() else root), listed


def _inaturalist(root: Path, test: Path) -> tuple[Path, list[ListedImage]]:
    """Inaturalist_test_set1.txt: a path a line; its two last folders (kingdom or so, species) are the class."""
    listed = []
    for number, line in enumerate(read_rows(test), start=1):
        path = _inside(line.strip(), test, number)
        parts = path.split("/")
        if len(parts) < 3:
            raise DataSetError(path=test, where=number, found=path, expected="…/<group>/<species>/<image>")
        listed.append(ListedImage(path, "/".join(parts[-3:-1])))
    return root, listed


BENCHMARKS: Final[dict[str, Benchmark]] = {
    "cub": Benchmark(
        title="CUB-200-2011", folders=("CUB_200_2011",), lists=("images.txt",), parse=_cub, images=5924, classes=100,
        where="https://data.caltech.edu/records/65de6-vp158",
        layout="images.txt, image_class_labels.txt and images/<class>/<image>.jpg",
    ),
    "sop": Benchmark(
        title="Stanford Online Products", folders=("Stanford_Online_Products",), lists=("Ebay_test.txt",), parse=_sop,
        images=60502, classes=11316,
        where="https://cvgl.stanford.edu/projects/lifted_struct/",
        layout="Ebay_test.txt and <category>_final/<image>.JPG",
    ),
    "in-shop": Benchmark(
        title="In-Shop", folders=("In-shop Clothes Retrieval Benchmark", "In-Shop", "inshop"),
        lists=("Eval/list_eval_partition.txt", "list_eval_partition.txt"), parse=_in_shop, has_queries=True,
        images=26830, classes=3985,
        where="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        layout="Eval/list_eval_partition.txt and Img/img/… (img.zip unpacked) or img/…",
    ),
    "inaturalist": Benchmark(
        title="iNaturalist 2018", folders=("iNaturalist", "inaturalist", "Inaturalist"),
        lists=("Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt"), parse=_inaturalist,
        images=136093, classes=2452,
        where="https://github.com/visipedia/inat_comp/tree/master/2018 (train_val2018.tar.gz), "
        "its retrieval split from https://github.com/Andrew-Brown1/Smooth_AP",
        layout="Inat_dataset_splits/Inaturalist_test_set1.txt and train_val2018/<group>/<species>/<image>.jpg",
    ),
}  # fmt: skip
"""The four of CUSA's Table 3, with the sizes of their test sets (In-Shop's: queries and gallery together)."""
