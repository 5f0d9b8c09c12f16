"""FAISS indices: nearest rows by cosine similarity. Ids are global rows.

faiss is not fork-safe: open an index in the process that searches, never before starting loader workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from stores.atomic import atomic_path
from stores.errors import StoreError


class Index:
    """A FAISS index over L2-normalised features, searched by inner product."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def exact(cls, features: NDArray[np.float16], rows: NDArray[np.int64]) -> Index:
        """Index (n, dim) features under the ids `rows` (n,), to be searched exhaustively."""
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(features.shape[1]))
        index.add_with_ids(features.astype(np.float32), rows)
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read the index file at `path`."""
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError:
            raise StoreError(
                f"{path} cannot be read as a FAISS index. Run cusa-extract again: it repairs the store."
            ) from None

    def write(self, path: Path) -> None:
        """Write the index to `path`, atomically."""
        with atomic_path(path) as temporary:
            faiss.write_index(self._index, str(temporary))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the `k` most similar rows of each of (n, dim) queries: similarities and global rows, (n, k) each.

        Where the index holds fewer than `k`, the rest are row -1.
        """
        if queries.ndim != 2 or queries.shape[1] != self._index.d:
            raise StoreError(f"The queries have shape {queries.shape}, the index searches (n, {self._index.d}).")
        similarity, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return similarity, rows
