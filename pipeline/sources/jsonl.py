"""JSON as a table, whose columns are the keys of its objects: one object a line, or a list of them.

A list may stand alone, as BLIP's and LAVIS's do, or in an object ({"data": [...]}), as RedCaps' annotations do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Final

from pipeline.sources.files import Folder, SourceFile, lines
from pipeline.sources.image_places import ImagePlaces
from pipeline.sources.json_documents import parsed, pieces
from pipeline.sources.json_forms import JsonForm, columns_of, json_form, named_by_id
from pipeline.sources.table_source import Row
from stores.errors import SourceError

_ASKED_FOR_COLUMNS: Final = 100
"""Optional keys may be absent from the first objects; this many are asked."""


class JsonTable:
    """A file of JSON objects."""

    def __init__(self, file: SourceFile, encoding: str | None, images: Folder | None) -> None:
        """Take a file, its encoding (else as seen), and the folder of the images that it speaks of (else its own)."""
        self.file, self._encoding = file, encoding
        self._places = ImagePlaces(images or file.folder)

    def columns(self) -> list[str]:
        found: dict[str, None] = {}
        for _, value in islice(self._values(), _ASKED_FOR_COLUMNS):
            found |= columns_of(value) if isinstance(value, dict) else {}
        if not found:
            form = (
                "lines; expected one object a line" if self._form.kind == "lines" else "items; expected a list of them"
            )
            raise SourceError(f"{self.file}: no JSON object in its first {form}, each with an image and a caption.")
        return list(found)

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        for number, (place, value) in enumerate(self._values()):
            if isinstance(value, dict):
                yield Row(number, place, [value.get(name) for name in wanted])
            else:
                yield Row(number, place, (), "it is no JSON object")

    @cached_property
    def _form(self) -> JsonForm:
        return json_form(self.file, self._encoding)

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Yield each record with its place; one whose `image_id` names its image has it as `image`."""
        for place, value in self._lines() if self._form.kind == "lines" else self._items():
            name = named_by_id(value) if isinstance(value, dict) else None
            yield place, value if name is None else {**value, "image": self._path(name, value)}

    def _lines(self) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(lines(self.file, "\n", self._encoding), start=1):
            if not line.isspace():
                yield f"line {number}", parsed(line)

    def _items(self) -> Iterator[tuple[str, Any]]:
        if self._form.kind == "document":
            raise SourceError(f"{self.file} is one document of images and captions, where others hold records.")
        for key, number, value in pieces(self.file, self._encoding):
            if key == self._form.key and number is not None:
                yield f"record {number}", value

    def _path(self, name: str, record: dict[str, Any]) -> str:
        """Return where an image named by its id lies: in the folder of its subreddit, where there is one."""
        subreddit = record.get("subreddit")
        is_sorted = isinstance(subreddit, str) and self._places.has_folder(subreddit)
        return f"{subreddit}/{name}" if is_sorted else name
