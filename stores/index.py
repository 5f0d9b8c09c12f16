"""FAISS indices: nearest rows by cosine similarity. Ids are global rows.

faiss is not fork-safe: open an index in the process that searches, never before starting loader workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from stores.atomic import atomic_path
from stores.errors import DamagedStoreError, StoreError
from stores.ownership import check_plain

_READING: Final = Lock()


class Index:
    """A FAISS index over L2-normalised features, searched by inner product."""

    def __init__(self, index: faiss.IndexIDMap) -> None:
        self.faiss_index = index
        """The index itself, whose ids are global rows."""

    @classmethod
    def exact(cls, features: NDArray[np.floating[Any]], rows: NDArray[np.int64]) -> Index:
        """Index (n, dim) features under the ids `rows` (n,), to be searched exhaustively."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(features.shape[1]))
        index.add_with_ids(features.astype(np.float32), rows)
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read the index file at `path`; what it holds is no larger than itself, whatever it claims.

        Raises:
            DamagedStoreError: it cannot be read as an index of global rows.
        """
        check_plain(path)
        try:
            with _at_most(path.stat().st_size):
                index = faiss.read_index(str(path))
        except (OSError, RuntimeError, MemoryError) as error:
            raise DamagedStoreError(f"cannot be read ({faiss_reason(error)})", path=path) from None
        if not isinstance(index, faiss.IndexIDMap) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise DamagedStoreError(path=path, found=index, expected="ids of global rows, searched by inner product")
        return cls(index)

    def write(self, path: Path) -> None:
        """Write the index to `path`, atomically.

        Raises:
            OSError: the disk is full, or forbids it.
        """
        with atomic_path(path) as temporary:
            try:
                faiss.write_index(self.faiss_index, str(temporary))
            except RuntimeError as error:
                raise OSError(f"{path} cannot be written: {faiss_reason(error)}") from None

    def __len__(self) -> int:
        return int(self.faiss_index.ntotal)

    def search(self, queries: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the `k` most similar rows of each of (n, dim) queries: similarities and global rows, (n, k) each.

        Where the index holds fewer than `k`, the rest are row -1.

        Raises:
            StoreError: the queries have another dimension, or the index is damaged.
        """
        if queries.ndim != 2 or queries.shape[1] != self.faiss_index.d:
            raise StoreError(f"The queries have shape {queries.shape}, the index searches (n, {self.faiss_index.d}).")
        try:
            similarity, rows = self.faiss_index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        except RuntimeError as error:
            raise DamagedStoreError(f"faiss cannot search the index ({faiss_reason(error)})") from None
        return similarity, rows


@contextmanager
def _at_most(size: int) -> Iterator[None]:
    """Let faiss read no vector of more bytes; its limit is of the whole process, so one index is read at a time."""
    with _READING:
        limit = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(limit)


def faiss_reason(error: Exception) -> str:
    """Return what an error of faiss says, without the place in faiss's source that it names first."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^Error in .*? at \S+:\d+: ", "", text, count=1, flags=re.DOTALL).rstrip(".")
