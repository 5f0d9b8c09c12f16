"""SCAN's data (Lee et al., 2018), f30k_precomp and coco_precomp as published: regions of images, without the images.

```
{train,dev,test,testall}_ims.npy    float32 (rows, 36, 2048)
{…}_caps.txt                        a caption a line, five consecutive ones an image
{…}_ids.txt                         the images' ids, perhaps
```

`_ims.npy` has a row for each image, or one for each caption (each image five times): the counts tell. With a folder of
images that are named by id (`data.images`) samples have these as well; else `data.require` must not ask for images.
Regions become the features `regions`. Where there is `testall`, it is the split test, of which `test` is a part.

Shapes: I images, R regions of P numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.sources.file_names import is_image, stem_and_ending
from pipeline.sources.files import Folder, SourceFile, entries
from pipeline.sources.image_files import ImageFile
from pipeline.sources.listed import ListedSource, by_label, file_in, required
from pipeline.sources.records import BadRecord, Record
from pipeline.sources.texts import lines
from pipeline.sources.unreadable import readable
from stores.errors import SourceError
from stores.modality import Level

CAPTIONS: Final = 5
"""Of each image."""
MARKS: Final = (("train_caps.txt", "dev_caps.txt", "test_caps.txt"), ("train_ims.npy", "dev_ims.npy", "test_ims.npy"))
_SPLITS: Final = {"train": ("train",), "val": ("dev",), "test": ("testall", "test")}
_NAME: Final = "SCAN's data"


def open_precomp(folder: Folder, images: Folder | None, require: Collection[str]) -> ListedSource:
    """Open the splits that a folder has.

    Raises:
        SourceError: a file is absent, or of another form or length than the others of its split; or images are
            required, and there is no folder of them.
    """
    if images is None and "image" in require:
        advice = "Take samples without images by data.require: [text], or name a folder of images by id: data.images."
        raise SourceError(f"{folder} holds regions of images, and no images", advice=advice)
    pictures = {} if images is None else _by_stem(images)
    files: list[SourceFile] = []
    records: dict[str, list[Record | BadRecord]] = {}
    splits: dict[str, RegionRows] = {}
    for split, names in _SPLITS.items():
        said = file_in(folder, [f"{name}_caps.txt" for name in names])
        if said is None:
            continue
        name = said.name.removesuffix("_caps.txt")
        captions = _lines(said)
        rows = RegionRows.of(required(folder, [f"{name}_ims.npy"], _NAME), len(captions))
        listed = file_in(folder, [f"{name}_ids.txt"])
        ids = [str(number) for number in range(rows.images)] if listed is None else _ids(listed, rows.images)
        files += [said] if listed is None else [said, listed]
        splits[split] = rows
        records[split] = [
            Record(
                source_id=f"{split}/{number}",
                captions=tuple(captions[CAPTIONS * row : CAPTIONS * (row + 1)]),
                image=None if images is None else ImageFile(images, pictures.get(number, f"{number}.jpg")),
            )
            for row, number in enumerate(ids)
        ]
    places = {
        record.source_id: (rows, row) for split, rows in splits.items() for row, record in enumerate(records[split])
    }
    return ListedSource("precomp", by_label(*files), records, {"regions": Regions(list(splits.values()), places)})


@dataclass(frozen=True)
class RegionRows:
    """The regions of a split's images in their file, read row by row."""

    file: SourceFile
    start: int
    """Where the rows begin, in bytes."""
    dtype: np.dtype[Any]
    shape: tuple[int, int]
    """R and P."""
    images: int
    each: int
    """How often each image stands there, one after another."""

    @classmethod
    def of(cls, file: SourceFile, captions: int) -> RegionRows:
        """Read the file's header; nothing in it is unpickled.

        Raises:
            SourceError: it is no array of regions, cut short, or its rows are none for each image or caption.
        """
        with readable(file), file.open() as stream:
            major, _ = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            start = stream.tell()
        if fortran:
            advice = "Save numpy.ascontiguousarray of it."
            raise SourceError(
                path=str(file), found="column by column (Fortran's order)", expected="row by row", advice=advice
            )
        # In Python's numbers: NumPy's product of a stranger's sizes may overflow to the right one.
        fits = len(shape) == 3 and min(shape) > 0 and file.size == start + math.prod(shape) * dtype.itemsize
        if not fits or dtype.kind != "f":
            found = f"{dtype} {shape} in {file.size:,} bytes"
            raise SourceError(path=str(file), found=found, expected="a whole array (rows, regions, numbers) of floats")
        rows, images = shape[0], captions // CAPTIONS
        if not captions:
            raise SourceError("captions", path=str(file), found="none", expected=f"{CAPTIONS} for each image")
        if captions % CAPTIONS or rows not in (captions, images):
            expected = f"{images:,} or {captions:,}, for {captions:,} captions, {CAPTIONS} an image"
            raise SourceError("rows", path=str(file), found=f"{rows:,}", expected=expected)
        return cls(file, start, dtype, (shape[1], shape[2]), images, rows // images)

    def row(self, image: int) -> NDArray[np.float32]:
        """Return an image's regions: (R, P)."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        place = self.start + image * self.each * size
        with readable(self.file):
            data = self.file.read(place, place + size)
        return np.frombuffer(data, self.dtype).reshape(self.shape).astype(np.float32)


class Regions:
    """The regions of every image."""

    level: Level = "sample"
    unit = False

    def __init__(self, files: list[RegionRows], places: Mapping[str, tuple[RegionRows, int]]) -> None:
        """Find regions by sample; `places` has the file and the image's number in it.

        Raises:
            SourceError: the files' regions are of several shapes.
        """
        shapes = {rows.shape: rows.file for rows in files}
        if len(shapes) > 1:
            found = ", ".join(f"{file.name} {shape}" for shape, file in shapes.items())
            raise SourceError("regions of several shapes", found=found)
        self.shape: tuple[int, ...] = next(iter(shapes))
        self._files, self._places = files, places

    def identity(self) -> Any:
        """Name the files, the large ones by size and time of change."""
        return [rows.file.digest(whole=False) for rows in self._files]

    def of(self, name: str) -> NDArray[np.float32] | None:
        """Return an image's regions: (1, R, P)."""
        rows, number = self._places[name]
        return rows.row(number)[None]


def _lines(file: SourceFile) -> list[str]:
    with readable(file):
        return [line.strip() for line in lines(file, "\n")]


def _ids(file: SourceFile, images: int) -> list[str]:
    """Return the id of each image, which may stand there once or five times."""
    found = _lines(file)
    ids = found if len(found) == images else found[::CAPTIONS]
    if "" in ids:
        raise SourceError("an id", path=str(file), where=f"line {found.index('') + 1}", found="nothing")
    if len(ids) != images or len(set(ids)) < images:
        counted, expected = (
            f"{len(found):,}, {len(set(found)):,} different",
            f"{images:,} different ids, each once or 5 times",
        )
        raise SourceError("ids", path=str(file), found=counted, expected=expected)
    return ids


def _by_stem(folder: Folder) -> dict[str, str]:
    with readable(folder):
        return {stem_and_ending(name)[0]: name for name, _ in entries(folder)[1] if is_image(name)}
