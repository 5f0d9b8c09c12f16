"""JSON as a table, whose columns are the keys of its objects: one object a line, or a list of them.

A list may stand alone, as BLIP's and LAVIS's do, or in an object ({"data": [...]}), as RedCaps' annotations do. What a
file holds, or whether it is a captions document, is told by its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from pipeline.sources.column_roles import role_of
from pipeline.sources.file_names import is_image, plain_suffix
from pipeline.sources.files import Folder, SourceFile
from pipeline.sources.image_files import ImagePlaces
from pipeline.sources.json_documents import MoreFollowsError, parsed, pieces
from pipeline.sources.table_source import Row
from pipeline.sources.texts import lines, open_text
from stores.errors import SourceError

LINES_ENDINGS: Final = (".jsonl", ".ndjson")
_HEAD: Final = 4096
_COCO_LISTS: Final = ("images", "annotations", "licenses", "categories")
_NO_CAPTIONS: Final = {
    "keypoints": "COCO's keypoints of persons",
    "segments_info": "COCO's panoptic segments",
    "bbox": "COCO's boxes and outlines of things (instances)",
    "segmentation": "COCO's boxes and outlines of things (instances)",
    "question": "questions about pictures",
    "answers": "answers to questions about pictures",
}
"""What annotations are about, told by a key of theirs."""
_ASKED_FOR_COLUMNS: Final = 100
"""Optional keys may be absent from the first objects; this many are asked."""


class JsonForm(NamedTuple):
    """How a JSON file is to be read."""

    kind: Literal["lines", "records", "document"]
    """Objects line by line; a list of records; or one document of Karpathy's or COCO's kind."""
    key: str | None = None
    """Of records: the key of the object that holds the list, None where the list stands alone."""


_LINES: Final = JsonForm("lines")
_DOCUMENT: Final = JsonForm("document")


def json_form(file: SourceFile, encoding: str | None = None) -> JsonForm:
    """Tell how a file that begins as JSON is to be read; it is read until that is clear, and not held.

    Raises:
        SourceError: it is a document that is well known, and has no captions.
    """
    with open_text(file, "", encoding) as text:
        if text.read(_HEAD).lstrip().startswith("["):
            return JsonForm("records")
    columns: dict[str, set[str]] = {}
    keys: list[str] = []
    try:
        for key, number, value in pieces(file, encoding):
            if key is None or number is None:
                keys.append(key or "")
            elif isinstance(value, dict) and not value.keys() <= columns.setdefault(key, set()):
                columns[key].update(columns_of(value))
                if form := _told_early(columns):
                    return form
    except MoreFollowsError:
        return _LINES
    except SourceError:
        # What is no JSON is left to whoever reads it.
        return _LINES if plain_suffix(file.name) in LINES_ENDINGS else _DOCUMENT
    if has_column(keys, "image") or plain_suffix(file.name) in LINES_ENDINGS:
        return _LINES
    return _told_by_all(file, columns)


def has_column(names: Iterable[str], role: str) -> bool:
    """Tell whether one of the names is a usual one for a role."""
    return any(role_of(name) == role for name in names)


def columns_of(record: dict[str, Any]) -> dict[str, None]:
    """Return the names of a record's columns in order; among them `image`, if only its `image_id` names the image."""
    names = dict.fromkeys(record)
    return names if named_by_id(record) is None else names | {"image": None}


def named_by_id(record: dict[str, Any]) -> str | None:
    """Return the file that a record's `image_id` names, if nothing else does: in RedCaps, or where it is a file's name.

    RedCaps' downloader stores images as `<subreddit>/<image_id>.jpg`.
    """
    name = record.get("image_id")
    if not isinstance(name, str) or has_column(record, "image"):
        return None
    if is_image(name):
        return name
    return f"{name}.jpg" if isinstance(record.get("subreddit"), str) else None


def _told_early(columns: dict[str, set[str]]) -> JsonForm | None:
    images, annotations = columns.get("images", set()), columns.get("annotations", set())
    if "sentences" in images:
        return _DOCUMENT
    if images and "caption" in annotations:
        name_images = _are_records(annotations) and "image_id" not in annotations
        return JsonForm("records", "annotations") if name_images else _DOCUMENT
    if {"subreddit", "image"} <= annotations:
        return JsonForm("records", "annotations")
    records = (key for key in columns if key not in _COCO_LISTS and _are_records(columns[key]))
    return next((JsonForm("records", key) for key in records), None)


def _told_by_all(file: SourceFile, columns: dict[str, set[str]]) -> JsonForm:
    for key in ("images", "annotations"):
        if _are_records(columns.get(key, set())):
            return JsonForm("records", key)
    if not columns.keys() & {"images", "annotations"}:
        others = [key for key in columns if key not in _COCO_LISTS]
        # Columns of other names: the table's reader says which are there and how to name them.
        return JsonForm("records", others[0]) if len(others) == 1 else _DOCUMENT
    raise SourceError(_without_captions(file, columns.get("images"), columns.get("annotations")))


def _are_records(columns: set[str]) -> bool:
    return has_column(columns, "image") and has_column(columns, "caption")


def _without_captions(file: SourceFile, images: set[str] | None, annotations: set[str] | None) -> str:
    """Say what a document is that has images or annotations, but not both with captions."""
    if annotations is None:
        what = (
            "it lists images without captions, as COCO's image_info_*.json do: there are no annotations, "
            "and images[0] has no split and no sentences"
        )
    elif "caption" in annotations:
        what = (
            "its annotations have captions, but it does not list the images that their image_id is of: "
            "expected images[] with id and file_name, or annotations[] with the image's file name"
        )
    else:
        about = next((said for key, said in _NO_CAPTIONS.items() if key in annotations), "no captions")
        what = f"its annotations hold {about}, and have the keys {', '.join(sorted(annotations))[:200]}"
    return f"{file}: {what}. {_wanted(file.name)}"


def _wanted(name: str) -> str:
    beginning = next((word for word in ("instances_", "person_keypoints_", "panoptic_") if name.startswith(word)), None)
    if beginning:
        return f"Name {name.replace(beginning, 'captions_', 1)} instead, from the same archive."
    return (
        "Name COCO's captions_*.json instead (its test sets have none), Karpathy's split file, "
        "or a list of records that have an image and a caption each."
    )


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
            lines_alone = self._form.kind == "lines"
            form = "lines; expected one object a line" if lines_alone else "items; expected a list of them"
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
            if name is not None:  # in the folder of its subreddit, where there is one
                value["image"] = self._places.within(value.get("subreddit"), name)
            yield place, value

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
