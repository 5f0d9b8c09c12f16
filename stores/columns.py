"""Single values of a mapped Arrow column, found by row without joining its chunks.

A table of a large store has one chunk a shard. Arrow's own `take` and `slice` copy, or walk over all chunks, each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.errors import DamagedStoreError


class Column:
    """A column of a store's table; what is not asked for is never read."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks, self._type = column.chunks, column.type
        self._bounds = np.concatenate([[0], np.cumsum([len(chunk) for chunk in self._chunks])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the integers at `rows` (n,), in their order: (n,).

        Raises:
            DamagedStoreError: there are no such rows; another table says so.
        """
        if len(rows):
            self._check(int(rows.min()), int(rows.max()) + 1)
        taken = np.empty(len(rows), dtype=np.int64)
        owners = np.searchsorted(self._bounds, rows, side="right") - 1
        for owner in np.unique(owners):
            here = owners == owner
            taken[here] = self._chunks[owner].to_numpy(zero_copy_only=False)[rows[here] - self._bounds[owner]]
        return taken

    def run(self, first: int, count: int) -> pa.Array:
        """Return the `count` values from row `first`.

        Raises:
            DamagedStoreError: there are no such rows; another table says so.
        """
        self._check(first, first + count)
        pieces, last = [], first + count
        owner = int(np.searchsorted(self._bounds, first, side="right")) - 1
        while first < last:
            start, end = int(self._bounds[owner]), min(last, int(self._bounds[owner + 1]))
            pieces.append(self._chunks[owner].slice(first - start, end - first))
            first, owner = end, owner + 1
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces or [pa.array([], self._type)])

    def _check(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self):
            raise DamagedStoreError(
                "the store's tables do not fit",
                found=f"rows {first} to {last - 1}",
                expected=f"rows 0 to {len(self) - 1}",
            )

    def values(self, rows: NDArray[np.int64]) -> list[Any]:
        """Return the values at `rows` (n,) as Python objects, in their order; meant for few."""
        return [self.run(int(row), 1)[0].as_py() for row in rows]
