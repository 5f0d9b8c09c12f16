"""The two usual caption files: Karpathy's split JSON, and COCO captions JSON (one file a split)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.base import BadRecord, Folder, ImageFile, Record, Rejected
from stores.digests import file_digest
from stores.errors import SourceError

KARPATHY_SPLITS = {"restval": "train"}
"""Karpathy's COCO file calls part of the training set "restval"."""


class AnnotationSource:
    """Records read from caption files; bad entries are kept as such, to be quarantined with their reason."""

    def __init__(
        self, kind: Literal["karpathy", "coco"], files: dict[str, Path], records: dict[str, list[Record | BadRecord]]
    ) -> None:
        self._kind = kind
        self._files = files
        self._records = records

    @property
    def description(self) -> dict[str, Any]:
        return {"format": self._kind, "files": {name: file_digest(path) for name, path in self._files.items()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._records)

    def id_scope(self, split: str) -> str:
        # A COCO file's ids are its own; people's files often count from zero in each split.
        return split if self._kind == "coco" else ""

    def count(self, split: str) -> int:
        return len(self._records[split])

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        return iter(self._records[split])


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a caption file.

    Raises:
        SourceError: the file is absent or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"The captions file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SourceError(f"The captions file {path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise SourceError(f"The captions file {path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def karpathy_source(path: Path, content: dict[str, Any], images: Path | None) -> AnnotationSource:
    """Read Karpathy's split file: `images[]` with `filename`, `split`, `sentences[].raw`, perhaps `filepath`."""
    root = images or path.parent
    records: dict[str, list[Record | BadRecord]] = {}
    for number, entry in enumerate(content["images"]):
        split = entry.get("split") if isinstance(entry, dict) else None
        if not isinstance(split, str):
            raise SourceError(f"{path}: images[{number}] has no split; expected train, restval, val or test.")
        records.setdefault(KARPATHY_SPLITS.get(split, split), []).append(_karpathy_record(root, number, entry))
    return AnnotationSource("karpathy", {"all": path}, _in_usual_order(records))


def _karpathy_record(root: Path, number: int, entry: dict[str, Any]) -> Record | BadRecord:
    source_id = str(entry.get("cocoid", entry.get("imgid", entry.get("filename", number))))
    try:
        name, folder = entry["filename"], entry.get("filepath", "")
        captions = tuple(sentence["raw"] for sentence in entry["sentences"])
    except (KeyError, TypeError) as error:
        return _bad(source_id, f"images[{number}] lacks {error}")
    if not all(isinstance(text, str) for text in (name, folder, *captions)):
        return _bad(source_id, f"images[{number}] has a name or caption that is not text")
    # People point at the folder above Karpathy's `filepath` or at the images themselves.
    inner = f"{folder}/{name}" if folder and (root / folder).is_dir() else name
    return _record(source_id, captions, ImageFile(Folder(LocalFileSystem(), str(root.resolve())), inner))


def coco_source(files: dict[str, Path], contents: dict[str, dict[str, Any]], images: Path | None) -> AnnotationSource:
    """Read COCO captions files, one a split.

    They hold `images[]` with `id` and `file_name`, and `annotations[]` with `image_id` and `caption`.
    """
    records = {}
    for split, content in contents.items():
        path = files[split]
        root = images or (path.parent / "images" if (path.parent / "images").is_dir() else path.parent)
        captions: dict[Any, list[Any]] = {}
        for number, annotation in enumerate(content["annotations"]):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
                raise SourceError(f"{path}: annotations[{number}] has no image_id.")
            captions.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
        records[split] = [_coco_record(root, number, entry, captions) for number, entry in enumerate(content["images"])]
    return AnnotationSource("coco", files, _in_usual_order(records))


def _coco_record(root: Path, number: int, entry: Any, captions: dict[Any, list[Any]]) -> Record | BadRecord:
    try:
        key, name = entry["id"], entry["file_name"]
    except (KeyError, TypeError) as error:
        return _bad(str(number), f"images[{number}] lacks {error}")
    texts = captions.get(key, [])
    if not isinstance(name, str) or not all(isinstance(text, str) for text in texts):
        return _bad(str(key), f"images[{number}] has a file name or caption that is not text")
    return _record(
        str(key), tuple(texts), ImageFile(Folder(LocalFileSystem(), str(root.resolve())), _locate(root, name))
    )


def _locate(root: Path, name: str) -> str:
    """Return where under `root` a COCO image lies: there, or in the folder that its name (COCO_val2014_…) speaks of."""
    folders = (part for part in name.split("_") if (root / part / name).is_file())
    return name if (root / name).is_file() else f"{next(folders, '.')}/{name}"


def _record(source_id: str, captions: tuple[str, ...], image: ImageFile) -> Record:
    return Record(source_id=source_id, captions=captions, image=image)


def _bad(source_id: str, detail: str) -> BadRecord:
    return BadRecord(source_id=source_id, rejected=Rejected("malformed-record", detail))


def _in_usual_order(records: dict[str, list[Record | BadRecord]]) -> dict[str, list[Record | BadRecord]]:
    usual = ("train", "val", "test")
    order = sorted(records, key=lambda split: (usual.index(split) if split in usual else len(usual), split))
    return {split: records[split] for split in order}
