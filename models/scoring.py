"""Scorers: how alike two items of different modalities are. Every student has one; the cosine is one like any other.

Shapes: n items of the first modality, m of the second, D embedding, L and K parts of width W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Final, Literal, Protocol, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from models.encoded import Encoded, tensors_of
from stores.errors import StudentError

PAIRS_AT_ONCE: Final = 2**28
"""Bytes that the pairs of one call of a network may take."""
CELLS_AT_ONCE: Final = {"cpu": 2**20, "cuda": 2**24}
"""Cosines of members that are assigned at once, by device: on a processor few enough to stay in its cache."""
PERMUTED: Final = 5
"""The largest sets whose permutations are all tried."""
Activation = Literal["expm1", "none"]


class Scorer(Protocol):
    """Compares items of the student's first modality with items of a later one; may be a torch module."""

    pair_bytes: int
    """Memory that one pair takes while it is scored, beside what its items take; it bounds the blocks."""

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        """Return the scores of every item of `first` with every item of `second`: (n, m)."""

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        """Return the scores of the items of `first` each with its own of `second`: (n,)."""


class Cosine:
    """The cosine of the vectors. Rankings by it are exact and are never materialised (`train.evaluation.rankings`)."""

    pair_bytes = 4

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        return cosine_similarity(first.vector, second.vector)

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        cosines: Tensor = torch.linalg.vecdot(unit(first.vector), unit(second.vector))
        return cosines


class OwnSimilarity:
    """A two-tower student's own similarity of vectors, (n, D) and (m, D) to (n, m)."""

    pair_bytes = 4

    def __init__(self, similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._similarity = similarity

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        return self._similarity(first.vector, second.vector)

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        both = zip(first.vector, second.vector, strict=True)
        return torch.stack([self._similarity(one[None], other[None])[0, 0] for one, other in both])


class Pairwise(nn.Module):
    """A network that scores pairs of items by their parts: (p, L, W) and (p, K, V), with masks, to (p,) scores.

    A matrix is scored in blocks that take `PAIRS_AT_ONCE` bytes at most.
    """

    def __init__(self, network: Callable[[Encoded, Encoded], Tensor], pair_bytes: int) -> None:
        """Wrap `network`, which is given p items of either side; `pair_bytes` is what a pair of them takes in it."""
        super().__init__()
        self.network, self.pair_bytes = network, pair_bytes

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        # Each pair has its items to itself while it is scored.
        items = sum(tensor.nbytes // max(1, len(tensor)) for tensor in tensors_of((first, second)))
        at_once = max(1, PAIRS_AT_ONCE // (self.pair_bytes + items))
        width = min(second.size, at_once)
        columns = _blocks(second, width)
        rows = [
            torch.cat([self._block(some, others) for others in columns], dim=1)
            for some in _blocks(first, max(1, at_once // width))
        ]
        return torch.cat(rows)

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        scores: Tensor = self.network(first, second)
        return scores

    def _block(self, first: Encoded, second: Encoded) -> Tensor:
        """Score every pair of a block at once."""
        row = torch.arange(first.size, device=first.vector.device).repeat_interleave(second.size)
        column = torch.arange(second.size, device=second.vector.device).repeat(first.size)
        return self.pairs(first.take(row), second.take(column)).view(first.size, second.size)


class SetScorer(ABC):
    """Compares two sets of K vectors each, an item's parts, by their K × K cosines."""

    pair_bytes = 4
    """What stays of a pair; the cosines of its members are made and assigned block by block."""

    def __init__(self, activation: Activation = "expm1") -> None:
        """Scale each cosine c that counts as exp(c) − 1, or not ("none")."""
        if activation not in (known := get_args(Activation)):
            raise StudentError("activation", found=activation, expected=f"one of {', '.join(known)}")
        self.activation: Activation = activation

    def matrix(self, first: Encoded | Tensor, second: Encoded | Tensor) -> Tensor:
        """Return the scores of n items with m: (n, m). Both as encoded, or as their (n, K, D) members alone."""
        one, other = members(first), members(second)
        with torch.autocast(one.device.type, enabled=False):
            if one.shape[1:] != other.shape[1:]:
                raise StudentError("members of two sets", found=tuple(one.shape[1:]), expected=tuple(other.shape[1:]))
            count, columns = one.shape[1], other.flatten(0, 1).T
            cells = CELLS_AT_ONCE.get(one.device.type, CELLS_AT_ONCE["cuda"])
            height = max(1, cells // max(1, columns.shape[1] * count))
            return torch.cat([self._block(some, columns) for some in torch.split(one, height)])

    def pairs(self, first: Encoded | Tensor, second: Encoded | Tensor) -> Tensor:
        """Return the scores of n items each with its own: (n,)."""
        one, other = members(first), members(second)
        with torch.autocast(one.device.type, enabled=False):
            return self._score(one @ other.mT)

    def _block(self, some: Tensor, columns: Tensor) -> Tensor:
        """Score (p, K, W) sets against the (W, m · K) members of others: (p, m)."""
        count, size = some.shape[1], columns.shape[1] // some.shape[1]
        cosines = (some.flatten(0, 1) @ columns).view(len(some), count, size, count).transpose(1, 2)
        return self._score(cosines.flatten(0, 1)).view(len(some), size)

    def _score(self, cosines: Tensor) -> Tensor:
        """Return the scores of pairs by their members' cosines: (p, K, K) to (p,)."""
        counted = self._counted(cosines)
        return (counted if self.activation == "none" else counted.expm1()).mean(dim=1)

    @abstractmethod
    def _counted(self, cosines: Tensor) -> Tensor:
        """Return which cosines of each pair count: (p, K, K) to (p, K)."""


class Assignment(SetScorer):
    """The mean over the best one-to-one assignment of the members (MaxMatch, arXiv 2506.21538); K = 1 is the cosine.

    The assignment is a constant of the gradient, which is that of the maximum wherever the best one is unique: every
    member of both sets has a part in it.
    """

    def _counted(self, cosines: Tensor) -> Tensor:
        return cosines.gather(2, best_assignment(cosines)[..., None]).squeeze(2)


class TopPairs(SetScorer):
    """The mean over the K nearest of the K² pairs of members, as MaxMatch ranks at test; no less than `Assignment`."""

    def _counted(self, cosines: Tensor) -> Tensor:
        return cosines.flatten(1).topk(cosines.shape[1], dim=1).values


def best_assignment(similarity: Tensor) -> Tensor:
    """Return which column each row takes in the one-to-one assignment of the largest sum: (p, K, K) to (p, K) int64.

    It is a constant: no gradient flows through the choice. Where sums are equal, the first permutation is taken.
    Up to K = 5 the sums of all K! permutations are one matrix product, on the device; beyond, scipy solves each.
    """
    similarity, count = similarity.detach(), similarity.shape[-1]
    if count > PERMUTED:
        solved = [linear_sum_assignment(one, maximize=True)[1] for one in similarity.cpu().numpy()]
        columns = np.array(solved, dtype=np.int64).reshape(-1, count)
        return torch.from_numpy(columns).to(similarity.device)
    ways, cells = _permutations(count, similarity.device)
    sums = similarity.flatten(1) @ cells.to(similarity.dtype)
    return ways[sums.argmax(dim=1)]


@cache
def _permutations(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the K! permutations, (K!, K) int64, and which cells of K × K each takes, (K · K, K!) of 0 and 1."""
    ways = torch.tensor(list(permutations(range(count))))
    cells = torch.zeros(len(ways), count, count).scatter_(2, ways[..., None], 1.0)
    return ways.to(device), cells.flatten(1).T.contiguous().to(device)


def members(items: Encoded | Tensor) -> Tensor:
    """Return the (n, K, D) members of sets, at length one.

    Raises:
        StudentError: the items have no parts, or of another shape.
    """
    given = items if isinstance(items, Tensor) else items.parts
    if given is None or given.ndim != 3:
        found = "no parts" if given is None else f"{tuple(given.shape)}"
        raise StudentError("sets are compared by their members", found=found, expected="(n, K, D)")
    with torch.autocast(given.device.type, enabled=False):
        return unit(given)


def unit(embeddings: Tensor) -> Tensor:
    """Return (n, D) `embeddings` at length one, in float32 or float64: their products are cosines."""
    precise = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return functional.normalize(precise, dim=-1)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity of every row of (n, D) `a` with every row of (m, D) `b`: (n, m)."""
    with torch.autocast(a.device.type, enabled=False):
        return unit(a) @ unit(b).T


def _blocks(items: Encoded, size: int) -> list[Encoded]:
    return [items.take(slice(start, start + size)) for start in range(0, items.size, size)]
