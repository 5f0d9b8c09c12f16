"""Tables of any format become records: a row is a record, whose columns are found by name or number.

No row is kept, so memory does not grow with the table. Rows of one picture become one sample later, in
`pipeline.merge`. The formats themselves are in `delimited`, `jsonl`, `parquet` and `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from pipeline.sources.caption_values import captions_at, kind_of
from pipeline.sources.column_roles import Roles, find_roles
from pipeline.sources.files import Folder, SourceFile
from pipeline.sources.image_files import ImageFile, ImagePlaces
from pipeline.sources.places import common_split
from pipeline.sources.records import BadRecord, Caption, EncodedImage, NoImage, Record, Rejected
from pipeline.sources.unreadable import readable
from stores.errors import SourceError
from stores.parameters import Columns


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
        """Yield every row with the values of the columns `wanted`, in their order.

        An image's bytes, or a struct of bytes and path, may come as an EncodedImage.
        """


@dataclass(frozen=True)
class TableReader:
    """Reads the records of tables of one format."""

    open_table: Callable[[SourceFile], Table]
    columns: Columns
    images: Folder | None
    """Where the images named in a table lie; without it, in the table's own folder."""
    require: frozenset[str]
    """What each record must have: image, text."""
    splits: tuple[str, ...] = ()
    """The splits that a column tells apart; without them, all of a table is one split."""

    def of_splits(self, splits: Iterable[str]) -> TableReader:
        """Return a reader that reads one split at a time, by the column of splits."""
        return replace(self, splits=tuple(splits))

    def read(self, file: SourceFile, prefix: str, split: str) -> Iterator[Record | BadRecord]:
        """Yield the records of a table; `prefix` goes before the numbers of rows where they are the ids."""
        table = self.open_table(file)
        roles = find_roles(table, self.columns, self.require)
        reader = _RowReader(table.columns(), roles, self.images or file.folder, prefix, self.require)
        for row in table.rows(reader.columns):
            if not self.splits:
                yield reader.record(row)
                continue
            name = None if row.fault or roles.split is None else reader.plain(row, roles.split)
            own = _split(name)
            if own is None and split == self.splits[0]:
                # Those whose split cannot be told go to the first, as faults.
                yield reader.record(row, f"its column {roles.split!r} holds {kind_of(name)}, expected a split's name")
            elif own == split:
                yield reader.record(row)


def column_splits(reader: TableReader, files: Iterable[SourceFile]) -> set[str]:
    """Return the splits that the tables' column of splits names; reads that column through.

    Raises:
        SourceError: a table cannot be read, or lacks a column.
    """
    found: set[str] = set()
    for file in files:
        with readable(file):
            table = reader.open_table(file)
            roles = find_roles(table, reader.columns, reader.require)
            if roles.split is None:
                continue
            kinds: set[str] = set()
            for value in (_plain(row.values[0]) for row in table.rows([roles.split]) if not row.fault):
                if (split := _split(value)) is not None:
                    found.add(split)
                elif not found:
                    kinds.add(kind_of(value))
            if kinds and not found:
                where, found_here = f"column {roles.split!r}", ", ".join(sorted(kinds))
                advice = "Write names there, or name each split's file: --source train=FILE."
                expected = "names of splits, such as train"
                raise SourceError(path=str(file), where=where, found=found_here, expected=expected, advice=advice)
    return found


def _split(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return common_split(value) if isinstance(value, str) and value else None


def _plain(value: Any) -> Any:
    # Tables leave bytes where they lie, since those of images are many.
    try:
        return value.read() if hasattr(value, "identity") else value
    except NoImage:
        return None


def _inner(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_inner(item, key) for item in value]
    return value.get(key) if isinstance(value, dict) else None


class _RowReader:
    """Makes records of rows, whose values it finds by column, or by `column.key` within a column's objects."""

    def __init__(
        self, names: Sequence[str], roles: Roles, images: Folder, prefix: str, require: frozenset[str]
    ) -> None:
        self._roles, self._prefix, self._places, self._require = roles, prefix, ImagePlaces(images), require
        paths = {name: [name] if name in names else name.split(".") for name in roles.wanted}
        self.columns = list(dict.fromkeys(path[0] for path in paths.values()))
        """The columns to read."""
        self._paths = {name: (self.columns.index(path[0]), path[1:]) for name, path in paths.items()}

    def value(self, row: Row, name: str) -> Any:
        """Return the value of a column in a row; an image's bytes may be an EncodedImage."""
        place, keys = self._paths[name]
        return reduce(_inner, keys, row.values[place])

    def plain(self, row: Row, name: str) -> Any:
        """Return the value of a column that holds no images; raises `Rejected` where its bytes cannot be had."""
        return _plain(self.value(row, name))

    def record(self, row: Row, fault: str = "") -> Record | BadRecord:
        """Return the record of one row; a `fault` of a row that has values makes it a bad one."""
        source_id = f"{self._prefix}{row.number}"
        captions: tuple[Caption, ...] = ()
        try:
            if row.fault:
                raise Rejected("malformed-record", f"{row.place}: {row.fault}")
            captions = self._captions(row)
            if fault:
                raise Rejected("malformed-record", f"{row.place}: {fault}")
            if self._roles.id is not None:
                source_id = self._id(row, self._roles.id)
            image = self._image(row)
        except Rejected as rejected:
            return BadRecord(source_id=source_id, rejected=rejected, captions=len(captions))
        label = None if self._roles.label is None else self.value(row, self._roles.label)
        return Record(source_id=source_id, captions=captions, image=image, label=_label(label))

    def _id(self, row: Row, column: str) -> str:
        value = self.plain(row, column)
        text = _text_id(value)
        if text is None:
            raise _wrong(row, column, value, "text or a whole number")
        return text

    def _captions(self, row: Row) -> tuple[Caption, ...]:
        if self._roles.caption is None:
            return ()
        value, place = self.plain(row, self._roles.caption), f"{row.place}, column {self._roles.caption!r}:"
        if value is None and "text" not in self._require:
            return ()
        none = Rejected("empty-caption", f"{place} there is none but {kind_of(value)}")
        return captions_at(place, value) or (none,)

    def _image(self, row: Row) -> EncodedImage | None:
        if not self._roles.image:
            return None
        *folders, name = (self.value(row, column) for column in self._roles.image)
        if isinstance(name, dict):
            name = name.get("path")  # as Hugging Face's struct, without a part for the bytes
        if isinstance(name, str) and name:
            return ImageFile(self._places.root, self._places.within(folders[0] if folders else None, name))
        if hasattr(name, "identity"):
            image: EncodedImage = name
            return image
        if (name is None or name == "") and "image" not in self._require:
            return None
        raise _wrong(row, self._roles.image[-1], name, "a path, or the bytes of an image")


def _wrong(row: Row, column: str, value: Any, expected: str) -> Rejected:
    detail = f"{row.place}: its column {column!r} holds {kind_of(value)}, expected {expected}"
    return Rejected("malformed-record", detail)


def _text_id(value: Any) -> str | None:
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return (text if text.isprintable() and "\ufffd" not in text else value.hex()) or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas writes whole numbers in a column with gaps
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, Decimal | UUID):
        return str(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _label(value: Any) -> str | None:
    is_label = isinstance(value, str | int | float | Decimal) and value != "" and value == value
    return str(value) if is_label else None
