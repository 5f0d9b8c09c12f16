"""Image retrieval: the four published layouts in small, hostile lists and images, and R@1 by hand."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from stores import CusaError, Store
from stores.images import decode_rgb
from train.evaluation.image_folders import BENCHMARKS, open_benchmark
from train.evaluation.image_retrieval import measure_image_retrieval, measure_images, recall_at_1
from train.evaluation.models import MeasuredModel, load_model
from train.evaluation.on_store import split_images
from train.evaluation.result import DataSetError, Result

RED, BLUE = (200, 10, 10), (10, 10, 200)


@pytest.fixture(scope="module")
def colours() -> MeasuredModel:
    """A real teacher as small as can be: the mean colour of a picture."""
    return load_model("tiny_teachers:mean_colour", device="cpu", precision="fp32")


def draw(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, "JPEG")


def shade(colour: tuple[int, int, int], step: int) -> tuple[int, int, int]:
    return (colour[0] + step, colour[1] + 2 * step, colour[2])


def cub(folder: Path) -> Path:
    """Two classes of training and two of testing, three images each."""
    root = folder / "CUB_200_2011"
    images, labels = [], []
    for number in range(12):
        label = (1, 100, 101, 200)[number // 3]
        path = f"{label:03}.Bird/Bird_{number}.jpg"
        draw(root / "images" / path, shade(RED if label in (1, 101) else BLUE, number))
        images.append(f"{number + 1} {path}\n")
        labels.append(f"{number + 1} {label}\n")
    (root / "images.txt").write_text("".join(images))
    (root / "image_class_labels.txt").write_text("".join(labels))
    return root


def sop(folder: Path) -> Path:
    root = folder / "Stanford_Online_Products"
    lines = ["image_id class_id super_class_id path\n"]
    for number in range(4):
        path = f"chair_final/{number}.JPG"
        draw(root / path, shade(RED if number < 2 else BLUE, number))
        lines.append(f"{number + 1} {11319 + number // 2} 1 {path}\n")
    (root / "Ebay_test.txt").write_text("".join(lines))
    return root


def in_shop(folder: Path, images: str = "Img") -> Path:
    root = folder / "In-Shop"
    rows = []
    for number, (item, status) in enumerate([(1, "train"), *[(i, s) for i in (2, 3) for s in ("query", "gallery")]]):
        path = f"img/WOMEN/Dresses/id_{item:08}/0{number}_1_front.jpg"
        draw(root / images / path, shade(RED if item == 2 else BLUE, number))
        rows.append(f"{path:<60} id_{item:08}   {status}\n")
    (root / "Eval").mkdir()
    header = "image_name item_id evaluation_status\n"
    (root / "Eval" / "list_eval_partition.txt").write_text(f"{len(rows)}\n{header}{''.join(rows)}")
    return root


def inaturalist(folder: Path) -> Path:
    root = folder / "iNaturalist"
    paths = [f"train_val2018/{group}/12/{n}.jpg" for group in ("Aves", "Fungi") for n in range(2)]
    for number, path in enumerate(paths):
        draw(root / path, shade(RED if "Aves" in path else BLUE, number))
    (root / "Inat_dataset_splits").mkdir()
    (root / "Inat_dataset_splits" / "Inaturalist_test_set1.txt").write_text("".join(f"{path}\n" for path in paths))
    return root


def all_in(folder: Path) -> dict[str, Path]:
    return dict.fromkeys(BENCHMARKS, folder)


MAKE = {"cub": cub, "sop": sop, "in-shop": in_shop, "inaturalist": inaturalist}


def test_all_four_layouts_are_measured_and_averaged(tmp_path: Path, colours: MeasuredModel) -> None:
    for make in MAKE.values():
        make(tmp_path)
    result = measure_image_retrieval(colours, all_in(tmp_path))
    titles = [benchmark.title for benchmark in BENCHMARKS.values()]
    assert list(result.figures) == [*titles, "average of these"], "sets of another size have no average of the paper's"
    assert set(result.figures.values()) == {100.0}
    assert result.counts["CUB-200-2011"] == {"images": 6, "classes": 2, "missing": 0, "broken": 0}
    in_shop_counts = {"images": 4, "classes": 2, "queries": 2, "gallery": 2, "missing": 0, "broken": 0}
    assert result.counts["In-Shop"] == in_shop_counts
    assert len(result.messages) == 4, "each says that it is not the published size"
    assert result.messages[1] == (
        "Stanford Online Products: 4 test images of 2 classes are listed; "
        "published are 60,502 of 11,316. The figure is not comparable."
    )


@pytest.mark.parametrize("key", BENCHMARKS)
def test_a_benchmark_is_found_in_its_own_folder_and_in_the_one_above(tmp_path: Path, key: str) -> None:
    root = MAKE[key](tmp_path)
    above, itself = (open_benchmark(BENCHMARKS[key], place) for place in (tmp_path, root))
    assert above.names == itself.names
    assert above.labels.tolist() == itself.labels.tolist()
    base = root / {"cub": "images", "in-shop": "Img"}.get(key, "")
    for place, name in enumerate(itself.names):
        assert itself.read(place) == above.read(place) == (base / name).read_bytes()


def test_in_shop_queries_search_the_gallery_alone(tmp_path: Path, colours: MeasuredModel) -> None:
    rows = [(2, "query", RED), (2, "query", RED), (2, "gallery", BLUE), (3, "gallery", RED)]
    lines = [str(len(rows)), "image_name item_id evaluation_status"]
    for number, (item, status, colour) in enumerate(rows):
        draw(tmp_path / f"img/{number}.jpg", shade(colour, number))
        lines.append(f"img/{number}.jpg id_{item:08} {status}")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n\n")
    figures = measure_image_retrieval(colours, {"in-shop": tmp_path}).figures
    assert figures == {"In-Shop": 0.0}, "the other query is nearer, and is no candidate"


def test_the_average_is_the_mean_of_the_four(tmp_path: Path, colours: MeasuredModel) -> None:
    for make in MAKE.values():
        make(tmp_path)
    for name in ("Bird_6.jpg", "Bird_7.jpg"):
        (tmp_path / "CUB_200_2011" / "images" / "101.Bird" / name).unlink()
    *figures, average = measure_image_retrieval(colours, all_in(tmp_path)).figures.values()
    assert len(set(figures)) > 1
    assert average == pytest.approx(np.mean(figures))


def test_in_shop_images_may_lie_beside_the_lists(tmp_path: Path) -> None:
    root = in_shop(tmp_path, images="")
    images = open_benchmark(BENCHMARKS["in-shop"], root)
    assert images.queries is not None
    assert images.queries.tolist() == [True, False, True, False]
    assert len(images.read(3)) > 0


def test_inaturalist_classes_are_group_and_species(tmp_path: Path) -> None:
    images = open_benchmark(BENCHMARKS["inaturalist"], inaturalist(tmp_path))
    assert images.labels.tolist() == ["Aves/12", "Aves/12", "Fungi/12", "Fungi/12"]


def test_what_is_absent_is_named_with_where_to_get_it_and_the_rest_runs(tmp_path: Path, colours: MeasuredModel) -> None:
    sop(tmp_path)
    result = measure_image_retrieval(colours, all_in(tmp_path))
    assert list(result.figures) == ["Stanford Online Products"]
    absent = [message for message in result.messages if "Get it from" in message]
    places = [f"{tmp_path}, {title}" for title in ("CUB-200-2011", "In-Shop", "iNaturalist 2018")]
    assert [message.split(": not there")[0] for message in absent] == places
    assert "image_class_labels.txt" in absent[0]
    assert "https://data.caltech.edu" in absent[0]
    assert measure_image_retrieval(colours, all_in(tmp_path / "nowhere")).figures == {}


def test_missing_and_broken_images_are_counted_and_named(tmp_path: Path, colours: MeasuredModel) -> None:
    root = cub(tmp_path)
    images = root / "images"
    (images / "101.Bird" / "Bird_6.jpg").unlink()
    (images / "101.Bird" / "Bird_7.jpg").write_bytes(b"no image")
    pipe = images / "200.Bird" / "Bird_9.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    result = measure_image_retrieval(colours, all_in(tmp_path))
    assert result.counts["CUB-200-2011"] == {"images": 3, "classes": 2, "missing": 2, "broken": 1}
    named = next(message for message in result.messages if "missing or broken" in message)
    assert "3 of 6 images are missing or broken and are not ranked" in named
    assert "101.Bird/Bird_6.jpg (no such file)" in named
    assert "101.Bird/Bird_7.jpg (UnidentifiedImageError" in named
    assert result.figures["CUB-200-2011"] == pytest.approx(100 * 2 / 3), "the one left of its class finds none"


def test_images_that_are_all_absent_are_one_message(tmp_path: Path, colours: MeasuredModel) -> None:
    shutil.rmtree(sop(tmp_path) / "chair_final")
    result = measure_image_retrieval(colours, all_in(tmp_path))
    assert "Stanford Online Products" not in result.figures
    assert any("4 of 4 images are missing or broken" in message for message in result.messages)


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "/etc/passwd", "chair_final/../../x", "C:\\x.jpg", "a\\..\\..\\x"],
    ids=["above", "root", "down-and-above", "drive", "backslashes"],
)
def test_a_listed_path_never_leads_out_of_the_folder(tmp_path: Path, path: str, colours: MeasuredModel) -> None:
    root = sop(tmp_path)
    with (root / "Ebay_test.txt").open("a") as stream:
        stream.write(f"5 11321 1 {path}\n")
    with refused(DataSetError, path=root / "Ebay_test.txt", where=6, found=path):
        open_benchmark(BENCHMARKS["sop"], root)
    assert any("line 6" in message for message in measure_image_retrieval(colours, all_in(tmp_path)).messages)


@pytest.mark.parametrize(
    ("key", "file", "content", "where", "found"),
    [
        ("cub", "image_class_labels.txt", "1 x\n", 1, "x"),
        ("cub", "image_class_labels.txt", "1 101\n", 2, "2"),
        ("cub", "images.txt", "1\n", 1, "1"),
        ("cub", "images.txt", "1 a.jpg\n", "CUB-200-2011", None),
        ("sop", "Ebay_test.txt", "header\n1 2 x.JPG\n", 2, "1 2 x.JPG"),
        ("sop", "Ebay_test.txt", "", "Stanford Online Products", None),
        ("in-shop", "Eval/list_eval_partition.txt", "2\nheader\na b query\n", 1, "2"),
        ("in-shop", "Eval/list_eval_partition.txt", "", 1, ""),
        ("in-shop", "Eval/list_eval_partition.txt", "1\nh\na b val\n", 3, "val"),
        ("inaturalist", "Inat_dataset_splits/Inaturalist_test_set1.txt", "a.jpg\n", 1, "a.jpg"),
        ("inaturalist", "Inat_dataset_splits/Inaturalist_test_set1.txt", "\na/b/c.jpg\n", 1, ""),
    ],
    ids=[
        "cub-class",
        "cub-no-class",
        "cub-columns",
        "cub-no-test-image",
        "sop-columns",
        "sop-empty",
        "in-shop-count",
        "in-shop-empty",
        "in-shop-status",
        "inaturalist-depth",
        "inaturalist-blank-line",
    ],
)
def test_broken_lists_are_refused_by_file_and_line(
    tmp_path: Path, key: str, file: str, content: str, where: int | str, found: str | None
) -> None:
    root = MAKE[key](tmp_path)
    (root / file).write_text(content)
    with refused(DataSetError, where=where, found=found):
        open_benchmark(BENCHMARKS[key], root)


def test_images_listed_twice_are_said(tmp_path: Path, colours: MeasuredModel) -> None:
    root = sop(tmp_path)
    lines = (root / "Ebay_test.txt").read_text()
    (root / "Ebay_test.txt").write_text(lines + lines.splitlines()[-1] + "\n")
    messages = measure_image_retrieval(colours, all_in(root)).messages
    assert any("1 images are listed more than once" in message for message in messages)


def test_recall_by_hand() -> None:
    embeddings = np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3]], np.float32)
    assert recall_at_1(embeddings, np.array(["a", "a", "b", "a"])) == 50.0
    # Against the gallery alone, the first query's twin is out of reach.
    labels, queries = np.array(["a", "a", "b", "b"]), np.array([True, True, False, False])
    assert recall_at_1(embeddings, labels, queries) == 0.0
    with pytest.raises(DataSetError, match="nothing to rank"):
        recall_at_1(embeddings[:1], labels[:1])


def test_equally_near_ones_go_by_row() -> None:
    random = np.random.default_rng(0)
    # Vectors of one length, so that equal similarities are equal in every bit.
    embeddings = np.sign(random.normal(size=(60, 4))).astype(np.float32)
    labels = random.integers(3, size=60).astype(np.str_)
    hits = []
    for query in range(60):
        others = [other for other in range(60) if other != query]
        hits.append(labels[max(others, key=lambda other: embeddings[query] @ embeddings[other])] == labels[query])
    assert recall_at_1(embeddings, labels) == pytest.approx(100 * np.mean(hits))


def test_a_labelled_store_is_measured(scenes_store: Store, colours: MeasuredModel) -> None:
    images = split_images(scenes_store, "train")
    # By colour alone: the nearest image by mean colour is never of the same colour and shape.
    images = replace(images, labels=np.array([label.split()[0] for label in images.labels]))
    result = Result(task="image-retrieval", model=colours.name)
    measure_images(colours, images, result)
    title = images.title
    assert result.counts[title]["images"] == 48
    assert result.counts[title]["broken"] == 0
    pictures = [np.asarray(decode_rgb(images.read(place)).resize((4, 4)), dtype=float) for place in range(48)]
    means = np.array([picture.mean(axis=(0, 1)) + 1 for picture in pictures])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T - 2 * np.eye(48)
    hits = images.labels[cosines.argmax(axis=1)] == images.labels
    assert hits.any(), "a figure of 0 would show nothing"
    assert result.figures[title] == pytest.approx(100 * hits.mean())


def test_a_model_of_texts_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CusaError, match="embeds texts; the task image-retrieval needs one of images"):
        measure_image_retrieval(load_model("tiny_teachers:length", device="cpu"), all_in(tmp_path))
