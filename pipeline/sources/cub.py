"""CUB-200-2011 (Wah et al., 2011) as published, with the ten captions an image of Reed et al. (CVPR 2016).

```
CUB_200_2011/  images.txt, image_class_labels.txt, classes.txt, train_test_split.txt, images/…
               attributes/image_attribute_labels.txt, attributes/class_attribute_labels_continuous.txt
               text_c10/<class>/<image>.txt, or cvpr2016_cub/text_c10/…         ten captions an image, a line each
               testclasses.txt, or cvpr2016_cub/testclasses.txt                 the unseen classes of zero-shot learning
```

Splits are those of train_test_split.txt. Where the list of unseen classes is there, their images are all in the test
split: train has the training images of the other classes. A class's attributes are its embedding (Xian et al., 2018).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.files import Folder, SourceFile, asked, readable
from pipeline.sources.image_files import ImageFile
from pipeline.sources.listed import ListedSource, by_label, columns, file_in, required
from pipeline.sources.records import BadRecord, GivenFeatures, Record, Rejected
from pipeline.sources.texts import decoded
from stores.digests import value_digest
from stores.errors import SourceError
from stores.modality import Level

NAME: Final = "CUB-200-2011"
LISTS: Final = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
ATTRIBUTES: Final = 312
_TEXTS: Final = ("text_c10", "cvpr2016_cub/text_c10")
_UNSEEN: Final = ("testclasses.txt", "cvpr2016_cub/testclasses.txt")


def open_cub(folder: Folder) -> ListedSource:
    """Open the data set in its folder.

    Raises:
        SourceError: a list is absent, or names what another one does not.
    """
    files = [required(folder, [name], NAME) for name in LISTS]
    images, labels, names, trains = (dict(columns(file, 2)) for file in files)
    texts = _texts(folder)
    unseen_list = file_in(folder, _UNSEEN)
    unseen = {name for (name,) in columns(unseen_list, 1)} if unseen_list else set()
    records: dict[str, list[Record | BadRecord]] = {"train": [], "test": []}
    for number, name in images.items():
        if number not in trains or labels.get(number) not in names:
            raise SourceError(f"{folder}: image {number} ({name}) has no split or no class in {', '.join(LISTS[1:])}.")
        label = names[labels[number]]
        split = "train" if trains[number] == "1" and label not in unseen else "test"
        records[split].append(_record(folder, texts, name, label))
    kept = [*files, *([unseen_list] if unseen_list else [])]
    return ListedSource("cub", by_label(*kept), records, _features(folder, images, names))


def _texts(folder: Folder) -> Folder:
    with readable(folder):
        found = next((name for name in _TEXTS if asked(folder.system.isdir, folder.path(name))), None)
    if found is None:
        raise SourceError(
            f"{folder} has no {' and no '.join(_TEXTS)}: the captions of Reed et al. Unpack cvpr2016_cub.tar there."
        )
    return Folder(folder.system, folder.path(found))


def _record(folder: Folder, texts: Folder, name: str, label: str) -> Record | BadRecord:
    place = f"{name.rpartition('.')[0]}.txt"
    try:
        if ".." in place.split("/"):
            raise OSError("leads out of the folder")
        said = decoded(asked(texts.system.cat_file, texts.path(place)), None).splitlines()
    except OSError as error:
        return BadRecord(source_id=name, rejected=Rejected("no-captions", f"{texts.path(place)}: {error}"))
    captions = tuple(line.strip() for line in said if line.strip())
    image = ImageFile(folder, f"images/{name}")
    return Record(source_id=name, captions=captions, image=image, label=label)


def _features(folder: Folder, images: dict[str, str], names: dict[str, str]) -> dict[str, GivenFeatures]:
    of_images = file_in(folder, ["attributes/image_attribute_labels.txt"])
    of_classes = file_in(folder, ["attributes/class_attribute_labels_continuous.txt"])
    found: dict[str, GivenFeatures] = {}
    if of_images:
        found["attributes"] = ImageAttributes(of_images, images)
    if of_classes:
        found["class_embedding"] = ClassAttributes(of_classes, list(names.values()))
    return found


class ImageAttributes:
    """Which of the 312 attributes an image was said to have: 0 or 1; one that nobody was asked about is absent."""

    level: Level = "sample"
    shape: tuple[int, ...] = (ATTRIBUTES,)
    unit = False

    def __init__(self, file: SourceFile, images: dict[str, str]) -> None:
        """Read `file` when it is first asked; `images` are names by number."""
        self._file, self._images = file, images

    def identity(self) -> Any:
        """Name the file's content, and which images its numbers are."""
        return [self._file.digest(), value_digest(self._images)]

    def of(self, name: str) -> NDArray[np.float32] | None:
        """Return the row of an image."""
        row = self._said.get(name)
        return None if row is None else row.astype(np.float32)[None]

    @cached_property
    def _said(self) -> dict[str, NDArray[np.bool_]]:
        said: dict[str, NDArray[np.bool_]] = {}
        for number, attribute, present, _ in columns(self._file, 4):
            # Some lines have a field too many behind these; what they say of the attribute is whole.
            if number in self._images and attribute.isdecimal() and 1 <= int(attribute) <= ATTRIBUTES:
                row = said.setdefault(self._images[number], np.zeros(ATTRIBUTES, dtype=np.bool_))
                row[int(attribute) - 1] = present == "1"
        return said


class ClassAttributes:
    """How often people saw each of the 312 attributes in a class's images: its embedding, at length one."""

    level: Level = "class"
    shape: tuple[int, ...] = (ATTRIBUTES,)
    unit = True

    def __init__(self, file: SourceFile, names: list[str]) -> None:
        """Read `file` when it is first asked; `names` are those of its rows."""
        self._file, self._names = file, names

    def identity(self) -> Any:
        """Name the file's content, and the classes of its rows."""
        return [self._file.digest(), self._names]

    def of(self, name: str) -> NDArray[np.float32] | None:
        """Return the row of a class."""
        return self._rows.get(name)

    @cached_property
    def _rows(self) -> dict[str, NDArray[np.float32]]:
        rows = {}
        with readable(self._file):
            for name, fields in zip(self._names, columns(self._file, ATTRIBUTES), strict=True):
                vector = np.array([float(field) for field in fields], dtype=np.float32)
                if not np.isfinite(vector).all() or not vector.any():
                    raise ValueError(f"the row of {name} holds no numbers, or zeros alone")
                rows[name] = (vector / np.linalg.norm(vector))[None]
        return rows
