"""Which kind of FAISS index a split gets: its `faiss.index_factory` string.

Every kind compares L2-normalised features by inner product, so that similarities are cosines.
"""

from __future__ import annotations

import math
from typing import Final

import faiss

from stores.errors import ParameterError
from stores.index import faiss_reason
from stores.parameters import Extract

# Exact search keeps float32. Half precision (SQfp16) would give the same ten rows from half the memory, but faiss then
# searches without BLAS: 200,000 × 512 answered 133 batched queries a second instead of 668 (single ones 70, not 22).
EXACT: Final = "Flat"
_FP16_ROWS: Final = 10_000_000
_TRAINING_PER_LIST: Final = 64
_TRAINING_PER_CODEBOOK: Final = 65_536
_TRAINING_BYTES: Final = 2**32


def check_index_kind(settings: Extract, dim: int) -> None:
    """Check that faiss can make the index that `settings.index` names for features of `dim` dimensions.

    It takes no time: call it before any long work.

    Raises:
        ParameterError: faiss refuses it, with faiss's reason.
    """
    if settings.index != "auto":
        new_index(settings.index, dim)


def choose_kind(settings: Extract, rows: int) -> str:
    """Return the factory string for `rows` rows: exact up to `exact_rows`, then the one that is given, else by size.

    The lists are searched one after another from the nearest, so what matters is how many there are. About 2 √rows
    makes the two parts of a search alike: finding the nearest lists, and going through a few of them. Centroids are
    searched exhaustively: that costs less than a hundredth of the teacher's own work at a hundred million rows, runs
    on a GPU, and is the same every time, which a graph over the centroids (HNSW) is not.

    Up to ten million rows the lists hold float16, the features as they are. Beyond that memory counts, and they hold
    one byte a dimension, which cost 0.02 of recall where it was measured. Product quantisation with the same bytes
    kept for refinement takes more memory still, and was no faster.
    """
    if rows <= max(settings.exact_rows, 1):
        return EXACT
    if settings.index != "auto":
        return settings.index
    lists = min(_power_of_two(2 * math.sqrt(rows)), _power_of_two(rows / _TRAINING_PER_LIST / math.sqrt(2)))
    return f"IVF{lists},{'SQfp16' if rows <= _FP16_ROWS else 'SQ8'}"


def new_index(kind: str, dim: int) -> faiss.Index:
    """Return an empty index of `kind`.

    Raises:
        ParameterError: faiss refuses it.
    """
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise _refused(kind, dim, faiss_reason(error)) from None
    if isinstance(index, faiss.IndexIDMap):
        raise _refused(kind, dim, "ids are added to every kind; leave IDMap out")
    return index


def training_rows(kind: str, dim: int) -> int:
    """Return how many rows train an index of `kind` well, within 4 GiB of float32; 0 where nothing is learned."""
    index = new_index(kind, dim)
    if index.is_trained:
        return 0
    inverted = faiss.try_extract_index_ivf(index)
    lists = 0 if inverted is None else inverted.nlist
    return int(min(max(lists * _TRAINING_PER_LIST, _TRAINING_PER_CODEBOOK), _TRAINING_BYTES // (4 * dim)))


def _power_of_two(value: float) -> int:
    """Return the power of two that is nearest to `value`, as a ratio."""
    return 1 << max(0, round(math.log2(value)))


def _refused(kind: str, dim: int, reason: str) -> ParameterError:
    return ParameterError(
        f"extract.index is {kind!r}, which faiss cannot make for {dim} dimensions: {reason}. "
        f"Write auto, or a faiss.index_factory string such as IVF4096,SQfp16."
    )
