"""What a person says of listed pairs: that a caption fits an image, or does not; a Parquet file beside the store.

A mark belongs to the data that it was made on: of others it is kept, and not shown.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stores import StoreError
from stores.atomic import atomic_path

SCHEMA: Final = pa.schema(
    [
        ("data", pa.string()),
        ("caption_row", pa.int64()),
        ("image_row", pa.int64()),
        ("caption", pa.large_string()),
        ("image_source_id", pa.string()),
        ("mark", pa.string()),
    ]
)
"""One row a pair that was marked, `right` or `wrong`; `data` is the fingerprint of the store's samples."""
MARKS: Final = ("right", "wrong")
_WRITING: Final = threading.Lock()


class Marks:
    """The marks of one list of pairs."""

    def __init__(self, path: Path, data: str) -> None:
        """Keep marks at `path`, which are made on data of the fingerprint `data`."""
        self._path, self._data = path, data

    def table(self) -> pa.Table:
        """Return the marks of this data.

        Raises:
            StoreError: the file there is none of marks.
        """
        return pa.Table.from_pylist([row for row in self._all() if row["data"] == self._data], SCHEMA)

    def by_pair(self) -> dict[tuple[int, int], str]:
        """Return the marks of this data by the rows of caption and image."""
        return {(row["caption_row"], row["image_row"]): row["mark"] for row in self.table().to_pylist()}

    def set(self, pair: dict[str, Any], mark: str | None) -> None:
        """Mark a pair, given as the columns of `SCHEMA` that tell it; None takes its mark away.

        Raises:
            StoreError: the file there is none of marks.
        """
        row = {**pair, "data": self._data, "mark": mark}
        told = ("data", "caption_row", "image_row")
        with _WRITING:
            others = [one for one in self._all() if any(one[name] != row[name] for name in told)]
            table = pa.Table.from_pylist([*others, row] if mark else others, SCHEMA)
            with atomic_path(self._path) as temporary:
                pq.write_table(table, temporary)

    def _all(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        try:
            table = pq.read_table(self._path)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"cannot be read ({error})", path=self._path, advice="Move it elsewhere.") from None
        if table.schema.names != SCHEMA.names:
            found, advice = table.schema.names, "Move it elsewhere."
            raise StoreError("columns", path=self._path, found=found, expected=SCHEMA.names, advice=advice)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
