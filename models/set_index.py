"""Search over sets: an index of all members of all items, found members folded by item, the items ranked by assignment.

Shapes: n items indexed and q queries with K members each, k results.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoded import Encoded
from models.scoring import SetScorer, members
from stores.index import Index

WIDTH: Final = 4
"""Members that each member of a query asks for, as a multiple of the results that are wanted."""
_PAIRS: Final = 2**13
"""Pairs of items that are scored at once."""


class SetIndex:
    """Items of sets, to be searched by items of another modality."""

    def __init__(self, items: Encoded, scorer: SetScorer) -> None:
        """Index the members of n items; `scorer` ranks what is found."""
        of_items = members(items).float()
        self._items, self._scorer = items, scorer
        rows = np.arange(items.size).repeat(of_items.shape[1])
        self._index = Index.exact(of_items.flatten(0, 1).numpy(), rows)

    def search(self, queries: Encoded, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the `k` best items for each query: scores and places, (q, k) each; where fewer are found, place -1."""
        wanted = min(WIDTH * k, len(self._index))
        _, found = self._index.search(members(queries).float().flatten(0, 1).numpy(), wanted)
        candidates = _once_each(found.reshape(queries.size, -1))
        height = max(1, _PAIRS // candidates.shape[1])
        blocks = []
        for start in range(0, queries.size, height):
            some = torch.from_numpy(candidates[start : start + height])
            blocks.append(self._best(queries.take(slice(start, start + height)), some, k))
        return torch.cat([scores for scores, _ in blocks]).numpy(), torch.cat([rows for _, rows in blocks]).numpy()

    def _best(self, queries: Encoded, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the `k` best of (q, c) candidates, -1 where there is none."""
        each = torch.arange(queries.size).repeat_interleave(candidates.shape[1])
        scores = self._scorer.pairs(queries.take(each), self._items.take(candidates.flatten().clamp(min=0)))
        scores = scores.view(candidates.shape).masked_fill(candidates < 0, -torch.inf)
        best = scores.topk(min(k, scores.shape[1]), dim=1)
        return best.values, candidates.gather(1, best.indices)


def _once_each(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of (q, c) each once for a query, and -1 in place of the others."""
    ordered = np.sort(found, axis=1)
    repeated = np.zeros(ordered.shape, dtype=np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(repeated, -1, ordered)
