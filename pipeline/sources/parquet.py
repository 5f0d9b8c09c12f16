"""Parquet as a table, batch by batch; images within it stay there until they are read.

A column of embedded images (bytes, or Hugging Face's struct of bytes and path) is not touched when the table is
listed. Its values cannot be read by their place, since they are encoded in pages; but images are read roughly in the
table's order, so one reader a file goes forward through the column and keeps the rows around.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.sources.files import BLOCK, Folder, SourceFile
from pipeline.sources.image_files import ImageFile, check_version
from pipeline.sources.records import EncodedImage, NoImage, Rejected
from pipeline.sources.table_source import Row
from pipeline.sources.unreadable import readable

MOST_LISTED: Final = 10_000
"""Values in a row, those in lists counted. A file of some kilobytes can hold a list of many millions."""
_ROWS_AT_ONCE: Final = 256
_IMAGES_AT_ONCE: Final = 32
_IMAGES_KEPT: Final = 256
"""Images are read on threads, out of order by as much as are read ahead; rows within this many are not read twice."""


class ParquetTable:
    """A Parquet file."""

    def __init__(self, file: SourceFile, images: Folder | None) -> None:
        """Take a file, and where the images lie that a struct names without holding them: else beside the file."""
        self.file, self._images = file, images or file.folder

    def columns(self) -> list[str]:
        with readable(self.file):
            return list(_open(self.file).schema_arrow.names)

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        table = _open(self.file)
        embedded = {name for name in wanted if _leaves(table.schema_arrow, name)}
        plain = sorted(set(wanted) - embedded)
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=plain, use_threads=False):
            numbers = range(number, number + batch.num_rows)
            held = sum((_held(batch[name]) for name in plain), np.zeros(batch.num_rows, np.int64))
            too_long = set(np.flatnonzero(held > MOST_LISTED).tolist())
            columns = [
                [CellImage(self.file, self._images, name, row) for row in numbers]
                if name in embedded
                else _values(batch[name], too_long)
                for name in wanted
            ]
            for place, (row, values) in enumerate(zip(numbers, zip(*columns, strict=True), strict=True)):
                found = f"it holds {held[place]:,} values, at most {MOST_LISTED:,} are taken"
                yield Row(row, f"row {row}", values, found if place in too_long else "")
            number += batch.num_rows


@dataclass(frozen=True)
class CellImage(EncodedImage):
    """An image embedded in a Parquet file, in the given row of a column."""

    file: SourceFile
    images: Folder
    column: str
    row: int

    def identity(self) -> str:
        return f"{self.file.label}:{self.file.version}:{self.row}"

    def read(self) -> bytes:
        check_version(self.file)
        try:
            data, path = _Cells(self.file, self.column).get(self.row)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise Rejected("unreadable-file", f"{self.file}, row {self.row}: {error}") from None
        if data is not None:
            return data
        if path:
            return ImageFile(self.images, path).read()
        raise NoImage("missing-file", f"{self.file}, row {self.row} holds no image")


Cell = tuple[bytes | None, str | None]


@lru_cache(maxsize=4)
class _Cells:
    """Reads a column of images forward, from wherever it is asked for, and keeps the last rows."""

    def __init__(self, file: SourceFile, column: str) -> None:
        self._table = _open(file)
        self._leaves = _leaves(self._table.schema_arrow, column)
        groups = range(self._table.num_row_groups)
        self._ends = np.cumsum([self._table.metadata.row_group(group).num_rows for group in groups])
        self._lock = threading.Lock()
        self._kept: dict[int, Cell] = {}
        self._next, self._batches = 0, self._from_group(0)

    def get(self, row: int) -> Cell:
        """Return the bytes and path in a row."""
        with self._lock:
            if row not in self._kept:
                self._go_to(row)
            return self._kept[row]

    def _go_to(self, row: int) -> None:
        group, current = np.searchsorted(self._ends, [row, self._next], side="right")
        # The next group is reached by going on, so that rows asked for out of order at a border are still kept.
        if row < self._next or group > current + 1:
            self._batches = self._from_group(int(group))
            self._next = int(self._ends[group - 1]) if group else 0
        while self._next <= row:
            try:
                cells = next(self._batches)
            except BaseException as error:
                # The next one who asks begins anew: what is asked for lies before this.
                self._next = int(self._ends[-1])
                raise OSError(f"it breaks off: {error}") from error
            for cell in cells:
                self._kept[self._next] = cell
                self._next += 1
        for old in list(self._kept)[: max(0, len(self._kept) - _IMAGES_KEPT)]:
            del self._kept[old]

    def _from_group(self, group: int) -> Iterator[list[Cell]]:
        # One by one, so that no batch lies in two groups, of which one may be damaged.
        for number in range(group, self._table.num_row_groups):
            for batch in self._table.iter_batches(_IMAGES_AT_ONCE, [number], columns=self._leaves, use_threads=False):
                yield _cells_of(batch.column(0))


def _cells_of(values: Any) -> list[Cell]:
    if pa.types.is_struct(values.type):
        return [(cell.get("bytes"), cell.get("path")) if cell else (None, None) for cell in values.to_pylist()]
    return [(cell, None) for cell in values.to_pylist()]


def _held(column: Any) -> NDArray[np.int64]:
    """Return how many values each row of a column holds, in its lists, lists of lists and objects."""
    if pa.types.is_struct(column.type):
        return sum(map(_held, column.flatten()), np.ones(len(column), np.int64))
    if not pa.types.is_nested(column.type):
        return np.ones(len(column), np.int64)
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size, np.int64)
    else:
        lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    counts: NDArray[np.int64] = lengths * column.is_valid().to_numpy(zero_copy_only=False)
    inner = column.flatten()
    if pa.types.is_nested(inner.type):
        sums = np.concatenate([[0], np.cumsum(_held(inner))])
        counts = np.diff(sums[np.cumsum(counts)], prepend=0)
    return counts


def _values(column: Any, left_out: set[int]) -> list[Any]:
    if not left_out:
        values: list[Any] = column.to_pylist()
        return values
    return [None if place in left_out else column[place].as_py() for place in range(len(column))]


def _open(file: SourceFile) -> Any:
    # A buffer makes it read a column in pieces, instead of a whole group's at once.
    return pq.ParquetFile(file.open(), buffer_size=BLOCK, pre_buffer=False)


def _leaves(schema: Any, name: str) -> list[str]:
    """Return the parts of a column of embedded images, or nothing if the column is of another kind."""
    kind = schema.field(name).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return [name]
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return [f"{name}.{part}" for part in ("bytes", "path") if kind.get_field_index(part) >= 0]
    return []
