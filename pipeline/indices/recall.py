"""Recall@10 of an index against exact search, and the width of search that reaches a given recall.

The truth is found block by block while the index is built, so that features are read once and no matrix of all
similarities is ever there. A query is a row of the split; its own row counts on neither side. A row as similar as the
tenth counts as found: equal vectors (repeated captions) have no one order.

The queries are held out of an index's training, but its width is chosen by them: the recall that is written down is the
one that the width was chosen for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from stores import Features
from stores.index import Index

QUERIES: Final = 1000
RECALL_AT: Final = 10
_TIE: Final = 1e-5
# The widest search: of lists, all of them; of candidates that are compared again, and of a graph, what stays bounded.
_WIDEST: Final = {"k_factor_rf": 64, "efSearch": 4096, "quantizer_efSearch": 4096}


class ExactNeighbours:
    """The exact similarity of each query's tenth nearest row, found block by block."""

    def __init__(self, features: Features, queries: NDArray[np.int64], rows: int) -> None:
        self.queries = queries
        self.vectors = features.gather(queries).astype(np.float32)
        self.k = max(min(RECALL_AT, rows - 1), 0)
        self._nearest = np.full((len(queries), self.k), -np.inf, dtype=np.float32)

    def see(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in a block (b, dim) and its global rows (b,)."""
        if self.k == 0:
            return
        similarity, found = faiss.knn(self.vectors, vectors, self.k + 1, faiss.METRIC_INNER_PRODUCT)
        similarity[(found < 0) | (rows[found] == self.queries[:, None])] = -np.inf
        merged = np.concatenate([self._nearest, similarity], axis=1)
        self._nearest = np.partition(merged, -self.k, axis=1)[:, -self.k :]

    def recall(self, index: Index, features: Features) -> float:
        """Return the share of the true nearest that `index` finds among as many answers; 1 where there are none."""
        if self.k == 0:
            return 1.0
        _, found = index.search(self.vectors, self.k + 1)
        others = (found >= 0) & (found != self.queries[:, None])
        others &= np.cumsum(others, axis=1) <= self.k
        query, _ = np.nonzero(others)
        # Similarities from the features themselves: those of the index may be rounded.
        similarity = np.einsum("nd,nd->n", self.vectors[query], features.gather(found[others]).astype(np.float32))
        reached = similarity >= self._nearest.min(axis=1)[query] - _TIE
        return float(reached.sum() / (len(self.queries) * self.k))


@dataclass(frozen=True)
class Tuned:
    """What an index reaches, and how wide it must be searched for that: faiss's parameters by name."""

    recall: float
    search: dict[str, int]


def widen_until(min_recall: float, index: Index, truth: ExactNeighbours, features: Features) -> Tuned:
    """Search ever wider, doubling, until `index` reaches `min_recall` or can be searched no wider.

    The last width stays set in the index, and is written with it.
    """
    widest = _widest(index.faiss_index)
    space, width = faiss.ParameterSpace(), 1
    while True:
        search = {name: min(width * (16 if "efSearch" in name else 1), most) for name, most in widest.items()}
        for name, value in search.items():
            space.set_index_parameter(index.faiss_index, name, value)
        recall = truth.recall(index, features)
        if recall >= min_recall or search == widest:
            return Tuned(recall, search)
        width *= 2


def _widest(index: faiss.IndexIDMap) -> dict[str, int]:
    """Return which parameters widen a search of this index, each with its largest value."""
    inner = faiss.downcast_index(index.index)
    space = faiss.ParameterSpace()
    space.initialize(inner)
    ranges = space.parameter_ranges
    names = [ranges.at(number).name for number in range(ranges.size())]
    widest = {name: value for name, value in _WIDEST.items() if name in names}
    if (inverted := faiss.try_extract_index_ivf(inner)) is not None:
        widest["nprobe"] = inverted.nlist
    return widest
