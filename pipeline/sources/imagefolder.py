"""A folder of images with a `.txt` beside each: one caption a line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any, Final

from pipeline.sources.base import BadRecord, Record, Rejected
from pipeline.sources.captions import captions_of_lines
from pipeline.sources.files import Folder, asked, decoded, entries, in_usual_order, readable, stem_and_ending, walk
from pipeline.sources.images import ImageFile
from pipeline.sources.places import common_split
from pipeline.sources.tars import IMAGE_ENDINGS

_TEXTS_AT_ONCE: Final = 64
_LARGEST_TEXT: Final = 16 << 20
_Pair = tuple[str, str | None, str | None]
"""The image's name, its version if known, and its text's name if there is one; or "" for a text without an image."""


class FolderSource:
    """Images and texts in a folder's own order; one sub-folder at a time is listed."""

    def __init__(self, folders: dict[str, Folder], named: bool) -> None:
        """Take folders by split; one that is not `named` is divided by its sub-folders train, val and test."""
        self._named = named
        self._folders = folders
        self._parts: dict[str, list[tuple[Folder, str, bool]]] = {}
        for split, folder in folders.items():
            if named:
                self._parts[split] = [(folder, "", True)]
            else:
                self._divide(folder)

    def _divide(self, folder: Folder) -> None:
        with readable(folder):
            names, files = entries(folder)
        usual = [name for name in names if common_split(name) in ("train", "val", "test")]
        parts: dict[str, list[tuple[Folder, str, bool]]] = {}
        if any(is_image(name) for name, _ in files) or not usual:
            parts["train"] = [(folder, "", not usual)]
        for name in names:
            split = common_split(name) if name in usual else "train"
            if usual:
                parts.setdefault(split, []).append((folder, f"{name}/", True))
        self._parts = {split: parts[split] for split in in_usual_order(parts)}

    @property
    def description(self) -> dict[str, Any]:
        return {"format": "folder", "folders": {split: str(folder) for split, folder in self._folders.items()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def id_scope(self, split: str) -> str:
        # Ids are paths within the folder.
        return split if self._named else ""

    def count(self, split: str) -> int | None:
        return None

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        for folder, below, deep in self._parts[split]:
            with readable(folder):
                for inner, files in walk(folder, below):
                    yield from _records(folder, inner, files)
                    if not deep:
                        break


def is_image(name: str) -> bool:
    """Tell by a file's name whether it is meant for an image."""
    return stem_and_ending(name)[1].lower().removeprefix(".") in IMAGE_ENDINGS


def _records(folder: Folder, below: str, files: list[tuple[str, str | None]]) -> Iterator[Record | BadRecord]:
    pairs = _pairs(files)
    while some := list(islice(pairs, _TEXTS_AT_ONCE)):
        texts = _texts(folder, below, [text for _, _, text in some if text is not None])
        for name, listed, text in some:
            content = texts[text] if text is not None else b""
            if not name:
                rejected = Rejected("missing-file", f"{folder.path(below)}{text} has no image of its name beside it")
                yield BadRecord(source_id=f"{below}{text}", rejected=rejected)
            elif isinstance(content, Exception) or len(content) > _LARGEST_TEXT:
                detail = str(content) if isinstance(content, Exception) else f"{text} has more than 16 MiB"
                yield BadRecord(source_id=f"{below}{name}", rejected=Rejected("unreadable-file", detail))
            else:
                captions = captions_of_lines(decoded(content, None))
                image = ImageFile(folder, f"{below}{name}", listed)
                yield Record(source_id=f"{below}{name}", captions=captions, image=image)


def _pairs(files: list[tuple[str, str | None]]) -> Iterator[_Pair]:
    """Yield every image with its text, of a folder's files sorted by stem."""
    for _, group in groupby(files, key=lambda file: stem_and_ending(file[0])[0]):
        same = list(group)
        text = next((name for name, _ in same if name.lower().endswith(".txt")), None)
        images = [(name, listed, text) for name, listed in same if is_image(name)]
        if images:
            yield from images
        elif text is not None:
            yield "", None, text


def _texts(folder: Folder, below: str, names: list[str]) -> dict[str, bytes | Exception]:
    """Read some texts at once: over a network they come side by side."""
    paths = [folder.path(below + name) for name in names]
    ends = [_LARGEST_TEXT + 1] * len(paths)
    found = asked(folder.system.cat_ranges, paths, [0] * len(paths), ends, on_error="return") if paths else []
    return dict(zip(names, found, strict=True))
