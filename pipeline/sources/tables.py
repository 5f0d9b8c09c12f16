"""Tables of any format become records: columns are found by name, consecutive rows of one image are one sample.

A row is kept no longer than its sample, so memory does not grow with the table. The formats themselves are in
`delimited`, `jsonl`, `parquet` and `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

from pipeline.sources.base import BadRecord, Caption, EncodedImage, Record, Rejected
from pipeline.sources.captions import captions_in
from pipeline.sources.files import Folder, SourceFile, readable
from pipeline.sources.images import ImageFile
from pipeline.sources.places import common_split
from stores.errors import SourceError
from stores.parameters import Columns

USUAL_NAMES: Final = {
    "image": (
        "image",
        "image_path",
        "filepath",
        "file_path",
        "filename",
        "file_name",
        "path",
        "img",
        "jpg",
        "png",
        "webp",
    ),
    "caption": ("caption", "captions", "text", "sentence", "sentences", "raw", "title"),
    # In COCO's way of speaking, `id` beside `image_id` numbers the captions.
    "id": ("image_id", "id", "key", "uid"),
    "split": ("split",),
    "label": ("label", "class"),
}
"""By which names a column is recognised, whatever their case; the first that a table has is taken."""


class Row(NamedTuple):
    """A row of a table: its number from 0, its place for people, and its values, or why there are none."""

    number: int
    place: str
    values: Sequence[Any]
    fault: str = ""


class Table(Protocol):
    """A file of rows."""

    file: SourceFile

    def columns(self) -> list[str]:
        """Return the names of the columns."""

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        """Yield every row with the values of the columns `wanted`, in their order; an image may be an EncodedImage."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which column of a table is what."""

    image: str
    caption: str
    id: str | None = None
    split: str | None = None
    label: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The columns to read, in the order in which `_RowReader` takes them."""
        return [name for name in (self.image, self.caption, self.id, self.label, self.split) if name is not None]


def find_roles(table: Table, named: Columns) -> Roles:
    """Say which columns are what: those named in data.columns, else by their usual names.

    Raises:
        SourceError: a named column, or one for image or caption, is not there.
    """
    found = table.columns()
    roles = {role: getattr(named, role) or _usual(found, role) for role in USUAL_NAMES}
    for role, name in roles.items():
        if name is None and role in ("image", "caption"):
            wanted = f"one for the {role} (usual names: {', '.join(USUAL_NAMES[role])})"
        elif name is not None and name not in found:
            wanted = f"{name!r}, which data.columns.{role} names"
        else:
            continue
        raise SourceError(
            f"{table.file} has the columns {', '.join(map(repr, found[:30])) or '(none)'}; expected {wanted}. "
            f"Set data.columns.{role} to the column of the {role}{_otherwise(role, found)}."
        )
    return Roles(
        image=str(roles["image"]),
        caption=str(roles["caption"]),
        id=roles["id"],
        split=roles["split"],
        label=roles["label"],
    )


def _otherwise(role: str, found: Sequence[str]) -> str:
    """Say what else may be meant by a table that lacks a column."""
    if len(found) == 1:
        return ", or data.format, if that is one name too few"
    # As img2dataset's output_format files leaves them.
    return ", or data.format=folder if the images are files with a .txt beside each" if role == "image" else ""


def _usual(found: Sequence[str], role: str) -> str | None:
    plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(found)}
    return next((plain[name] for name in USUAL_NAMES[role] if name in plain), None)


OpenTable = Callable[[SourceFile], Table]


@dataclass(frozen=True)
class TableReader:
    """Reads the records of tables of one format."""

    open_table: OpenTable
    columns: Columns
    images: Folder | None
    """Where the images named in a table lie; without it, in the table's own folder."""
    splits: tuple[str, ...] = ()
    """The splits that a column tells apart; without them, all of a table is one split."""

    def of_splits(self, splits: Iterable[str]) -> TableReader:
        """Return a reader that reads one split at a time, by the column of splits."""
        return replace(self, splits=tuple(splits))

    def read(self, file: SourceFile, prefix: str, split: str) -> Iterator[Record | BadRecord]:
        """Yield the records of a table; `prefix` goes before the numbers of rows where they are the ids."""
        table = self.open_table(file)
        roles = find_roles(table, self.columns)
        rows = table.rows(roles.wanted)
        if self.splits:
            rows = self._rows_of(rows, roles, split)
        yield from _joined(rows, _RowReader(roles, self.images or file.folder, prefix))

    def _rows_of(self, rows: Iterator[Row], roles: Roles, split: str) -> Iterator[Row]:
        """Keep the rows of one split; those whose split cannot be told go to the first, as faults."""
        for row in rows:
            own = None if row.fault or roles.split is None else _split(row.values[-1])
            if own is None and split == self.splits[0]:
                fault = row.fault or f"its split is {str(row.values[-1])[:40]!r}, expected a name"
                yield row._replace(fault=fault)
            elif own == split:
                yield row


def column_splits(reader: TableReader, files: Iterable[SourceFile]) -> set[str]:
    """Return the splits that the tables' column of splits names; reads that column through.

    Raises:
        SourceError: a table cannot be read, or lacks a column.
    """
    found: set[str] = set()
    for file in files:
        with readable(file):
            table = reader.open_table(file)
            roles = find_roles(table, reader.columns)
            if roles.split is not None:
                rows = table.rows([roles.split])
                found |= {split for row in rows if not row.fault and (split := _split(row.values[0])) is not None}
    return found


def _split(value: object) -> str | None:
    return common_split(value) if isinstance(value, str) and value else None


def _joined(rows: Iterator[Row], reader: _RowReader) -> Iterator[Record | BadRecord]:
    """Yield the records of rows; consecutive rows of one image are one record."""
    held: Record | None = None
    more: list[Caption] = []
    for row in rows:
        record = reader.record(row)
        if held is not None and isinstance(record, Record) and reader.continues(held, record):
            more.extend(record.captions)
            continue
        if held is not None:
            yield _with(held, more)
            more = []
        if isinstance(record, Record):
            held = record
        else:
            held = None
            yield record
    if held is not None:
        yield _with(held, more)


def _with(record: Record, more: list[Caption]) -> Record:
    return replace(record, captions=(*record.captions, *more)) if more else record


class _RowReader:
    """Makes records of rows."""

    def __init__(self, roles: Roles, images: Folder, prefix: str) -> None:
        self._images, self._prefix = images, prefix
        self._has_id = roles.id is not None
        self._label = None if roles.label is None else 3 if self._has_id else 2
        self._listed = False

    def record(self, row: Row) -> Record | BadRecord:
        """Return the record of one row."""
        numbered = f"{self._prefix}{row.number}"
        if row.fault:
            return _bad(numbered, f"{row.place}: {row.fault}")
        source_id = _text_id(row.values[2]) if self._has_id else numbered
        if source_id is None:
            return _bad(
                numbered, f"{row.place}: its id is {str(row.values[2])[:40]!r}, expected text or a whole number"
            )
        captions = captions_in(row.values[1])
        image = self._image(row.values[0])
        if image is None:
            return _bad(source_id, f"{row.place}: its image is neither a path nor the bytes of one")
        label = None if self._label is None else row.values[self._label]
        # Where captions come as lists, an image is not repeated: its bytes need not be compared.
        self._listed = not isinstance(row.values[1], str)
        return Record(
            source_id=source_id,
            captions=captions,
            image=image,
            label=str(label) if isinstance(label, str | int | float) and label != "" else None,
        )

    def continues(self, held: Record, record: Record) -> bool:
        """Tell whether a record is of the same image as the one before, and says nothing else by its id."""
        if self._has_id and held.source_id != record.source_id:
            return False
        if isinstance(held.image, ImageFile) or isinstance(record.image, ImageFile):
            return held.image == record.image
        if self._listed and not self._has_id:
            return False
        try:
            return held.image.read() == record.image.read()
        except Rejected:
            return False

    def _image(self, value: Any) -> EncodedImage | None:
        if isinstance(value, str):
            return ImageFile(self._images, value) if value else None
        return value if hasattr(value, "identity") else None


def _text_id(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes whole numbers in a column with gaps
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _bad(source_id: str, detail: str) -> BadRecord:
    return BadRecord(source_id=source_id, rejected=Rejected("malformed-record", detail))
