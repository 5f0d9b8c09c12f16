"""Tables of what a frozen tower makes of a store's items, and the input that reads them in the items' place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from models.inputs import Stored
from stores import Store
from stores.modality import Level


class OutputTable:
    """A tower's outputs by a store's global rows, in one mapped file: (rows, …) float32. A pickle carries the path."""

    def __init__(self, path: Path, level: Level) -> None:
        self._path, self.level = path, level

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "level": self.level}

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = open_memmap(self._path, "r+")
        return rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return self._rows.shape[1:]

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Of a number."""
        return self._rows.dtype

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) bool: every item has outputs."""
        return np.ones(len(self._rows), bool)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the outputs of global rows (n,), in their order: (n, …)."""
        return self._rows[rows]

    def write(self, rows: NDArray[np.int64], outputs: NDArray[np.float32]) -> None:
        """Set the outputs of global rows (n,)."""
        self._rows[rows] = outputs
        self._rows.flush()  # type: ignore[attr-defined] # of a memory map


class StoredOutputs(Stored):
    """Outputs of a frozen tower, read by row in place of the items: (n, …) float32."""

    def __init__(self, modality: str, level: Level, tables: Mapping[Path, OutputTable]) -> None:
        """Read those of each store from its table, by the store's root."""
        super().__init__(f"outputs of the {modality} tower", level)
        self._tables = dict(tables)

    def features(self, store: Store) -> OutputTable:
        return self._tables[store.root]
