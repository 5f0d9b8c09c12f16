"""The two usual caption files: Karpathy's split JSON, and COCO captions JSON (one file a split).

Both are one JSON document each, so they are held in memory, unlike the formats that are read as streams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline.sources.base import BadRecord, Record, Rejected
from pipeline.sources.files import Folder, SourceFile, asked, entries, in_usual_order, readable
from pipeline.sources.images import ImageFile
from pipeline.sources.places import Files
from stores.errors import SourceError

KARPATHY_SPLITS = {"restval": "train"}
"""Karpathy's COCO file calls part of the training set "restval"."""


class AnnotationSource:
    """Records read from caption files; bad entries are kept as such, to be quarantined with their reason."""

    def __init__(
        self,
        kind: Literal["karpathy", "coco"],
        files: dict[str, SourceFile],
        records: dict[str, list[Record | BadRecord]],
    ) -> None:
        self._kind = kind
        self._files = files
        self._records = {split: records[split] for split in in_usual_order(records)}

    @property
    def description(self) -> dict[str, Any]:
        return {"format": self._kind, "files": {name: file.digest() for name, file in self._files.items()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._records)

    def id_scope(self, split: str) -> str:
        # A COCO file's ids are its own; people's files often count from zero in each split.
        return split if self._kind == "coco" else ""

    def count(self, split: str) -> int:
        return len(self._records[split])

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        for file in self._files.values():
            file.check_unchanged()
        yield from self._records[split]
        for file in self._files.values():
            file.check_unchanged()


def open_annotations(files: dict[str, Files], wanted: str, named: bool, images: Folder | None) -> AnnotationSource:
    """Open one Karpathy file, or one COCO captions file a split.

    Args:
        files: the files of each split; all together as "train" if the splits are not `named`.
        wanted: the format that data.format asks for, or `auto`.
        named: whether the splits were given by name.
        images: the folder of the images, if it was given.

    Raises:
        SourceError: the files are neither.
    """
    if any(len(found) != 1 for found in files.values()):
        raise SourceError(
            f"{next(iter(files.values()))[0]} and others are captions files in JSON. Name one file a split: "
            f"--source train=FILE --source val=FILE."
        )
    single = {split: found[0] for split, found in files.items()}
    contents = {split: read_document(file) for split, file in single.items()}
    is_coco = all(_has_lists(content, "images", "annotations") for content in contents.values())
    if is_coco and wanted != "karpathy":
        if not named:
            given = single["train"]
            raise SourceError(
                f"{given} is a COCO captions file, which names no split. "
                f"Say which split each file is: --source train={given}, or data.source: {{train: {given}}}."
            )
        return coco_source(single, contents, images)
    if not named and wanted != "coco" and _has_lists(contents["train"], "images"):
        return karpathy_source(single["train"], contents["train"], images)
    found_keys = "; ".join(
        f"{single[split]} has the keys {', '.join(list(content)[:8])}" for split, content in contents.items()
    )
    raise SourceError(
        f"No known format: {found_keys}. Expected Karpathy's split file (images[].split), "
        f"or one COCO captions file a split (images, annotations)."
    )


def is_document(value: dict[str, Any]) -> bool:
    """Tell whether a JSON object is meant for a Karpathy or COCO file, and not for one line of many."""
    return _has_lists(value, "images") or _has_lists(value, "annotations")


def _has_lists(content: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(content.get(key), list) for key in keys)


def read_document(file: SourceFile) -> dict[str, Any]:
    """Return the JSON object in a captions file.

    Raises:
        SourceError: the file cannot be read or is not a JSON object.
    """
    with readable(f"The captions file {file}"), file.open_plain() as stream:
        data = stream.read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"The captions file {file} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise SourceError(f"The captions file {file} holds a JSON {type(value).__name__}, expected an object.")
    return value


def karpathy_source(file: SourceFile, content: dict[str, Any], images: Folder | None) -> AnnotationSource:
    """Read Karpathy's split file: `images[]` with `filename`, `split`, `sentences[].raw`, perhaps `filepath`."""
    places = _Places(images or file.folder)
    records: dict[str, list[Record | BadRecord]] = {}
    for number, entry in enumerate(content["images"]):
        split = entry.get("split") if isinstance(entry, dict) else None
        if not isinstance(split, str):
            raise SourceError(f"{file}: images[{number}] has no split; expected train, restval, val or test.")
        records.setdefault(KARPATHY_SPLITS.get(split, split), []).append(_karpathy_record(places, number, entry))
    return AnnotationSource("karpathy", {"all": file}, records)


def _karpathy_record(places: _Places, number: int, entry: dict[str, Any]) -> Record | BadRecord:
    source_id = str(entry.get("cocoid", entry.get("imgid", entry.get("filename", number))))
    try:
        name, folder = entry["filename"], entry.get("filepath", "")
        captions = tuple(sentence["raw"] for sentence in entry["sentences"])
    except (KeyError, TypeError) as error:
        return _bad(source_id, f"images[{number}] lacks {error}")
    if not all(isinstance(text, str) for text in (name, folder, *captions)):
        return _bad(source_id, f"images[{number}] has a name or caption that is not text")
    # People point at the folder above Karpathy's `filepath` or at the images themselves.
    inner = f"{folder}/{name}" if folder and places.has_folder(folder) else name
    return _record(source_id, captions, ImageFile(places.root, inner))


def coco_source(
    files: dict[str, SourceFile], contents: dict[str, dict[str, Any]], images: Folder | None
) -> AnnotationSource:
    """Read COCO captions files, one a split.

    They hold `images[]` with `id` and `file_name`, and `annotations[]` with `image_id` and `caption`.
    """
    records = {}
    for split, content in contents.items():
        file = files[split]
        places = _Places(images or file.folder)
        if images is None and places.has_folder("images"):
            places = _Places(Folder(file.system, file.folder.path("images")))
        captions: dict[Any, list[Any]] = {}
        for number, annotation in enumerate(content["annotations"]):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
                raise SourceError(f"{file}: annotations[{number}] has no image_id.")
            captions.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
        records[split] = [
            _coco_record(places, number, entry, captions) for number, entry in enumerate(content["images"])
        ]
    return AnnotationSource("coco", files, records)


def _coco_record(places: _Places, number: int, entry: Any, captions: dict[Any, list[Any]]) -> Record | BadRecord:
    try:
        key, name = entry["id"], entry["file_name"]
        texts = captions.get(key, [])
    except (KeyError, TypeError) as error:
        return _bad(str(number), f"images[{number}] lacks {error}")
    if not isinstance(name, str) or not all(isinstance(text, str) for text in texts):
        return _bad(str(key), f"images[{number}] has a file name or caption that is not text")
    return _record(str(key), tuple(texts), ImageFile(places.root, places.locate(name)))


class _Places:
    """Where a captions file's images lie; each folder is asked for once, since each question may cost a request."""

    def __init__(self, root: Folder) -> None:
        self.root = root
        self.has_folder = cache(self._has_folder)
        self._names = cache(self._list)

    def locate(self, name: str) -> str:
        """Return where a COCO image lies: there, or in the folder that its name (COCO_val2014_…) speaks of."""
        folder, _, last = name.rpartition("/")
        if not _is_inside(name) or last in self._names(folder):
            return name
        folders = (part for part in name.split("_") if self.has_folder(part) and name in self._names(part))
        found = next(folders, None)
        return f"{found}/{name}" if found else name

    def _has_folder(self, name: str) -> bool:
        try:
            return bool(_is_inside(name) and asked(self.root.system.isdir, self.root.path(name)))
        except OSError:
            return False

    def _list(self, name: str) -> frozenset[str]:
        try:
            return frozenset(file for file, _ in entries(Folder(self.root.system, self.root.path(name)))[1])
        except OSError:
            return frozenset()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _record(source_id: str, captions: tuple[str, ...], image: ImageFile) -> Record:
    return Record(source_id=source_id, captions=captions, image=image)


def _bad(source_id: str, detail: str) -> BadRecord:
    return BadRecord(source_id=source_id, rejected=Rejected("malformed-record", detail))
