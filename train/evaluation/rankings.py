"""Exact rankings by similarity, in blocks: the whole similarity matrix is never kept nor sorted.

Candidates are ordered by falling similarity, and equal ones by rising row, for every model alike.

Cosine similarity is the exact one of `exact_cosine`: identical embeddings tie exactly, wherever they stand.
`ranks_both_ways` computes a block in float32 first, whose error is bounded by D · 2⁻²⁴. Only pairs nearer than that to
the score that they are compared with are computed again in float64, so its ranks are exact too, at float32's speed.
Any other scorer's rankings (`train.evaluation.similarities`) are as exact as its scores, of which every pair has one.

Shapes: Q queries, C candidates, S images, T texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from stores.errors import CusaError
from train.evaluation.exact_cosine import cosine, full_precision, pair_cosine, unit_rows

NEAR: Final = 128
"""If more than one pair in so many is near, computing the whole block in float64 is the faster way."""

Ranks = NDArray[np.int64]


class Rows(Protocol):
    """The similarities of each query with all candidates, some queries at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Q and C."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (b, C) blocks, in the order of the queries."""


@dataclass(frozen=True, kw_only=True)
class CosineRows:
    """Rows of exact cosines of (Q, D) queries with (C, D) candidates.

    Memory beyond the embeddings: a block, and the candidates in float64.

    Raises:
        CusaError: on iteration, an embedding is not finite.
    """

    queries: Tensor
    candidates: Tensor
    block: int | None = None
    """How many queries a block has; None: as many as suit the device."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.candidates)

    def __iter__(self) -> Iterator[Tensor]:
        queries, candidates = unit_rows(self.queries), unit_rows(self.candidates).double()
        for part in torch.split(queries, self.block or block_rows(queries.device, len(candidates))):
            with full_precision(queries.device):
                scores = cosine(part, candidates)
            yield scores


def first_ranks(rows: Rows, relevant: sparse.csr_array) -> Ranks:
    """Return the best rank (from 0) among each query's relevant candidates, (Q, C) sparse: (Q,).

    Raises:
        CusaError: an embedding is not finite, the shapes disagree, or a query has no relevant candidate.
    """
    relevant = checked_relevance(relevant, rows.shape)
    ranks, start = np.empty(relevant.shape[0], dtype=np.int64), 0
    for scores in rows:
        stop = start + len(scores)
        own = torch.from_numpy(relevant[start:stop].toarray()).to(scores.device)
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        place = ((scores == best) & own).int().argmax(dim=1, keepdim=True)
        ahead = scores > best
        ahead |= (scores == best) & (torch.arange(scores.shape[1], device=scores.device) < place)
        ranks[start:stop] = ahead.sum(dim=1).cpu().numpy()
        start = stop
    return ranks


def ranks_both_ways(
    images: Tensor, texts: Tensor, relevant: sparse.csr_array, block: tuple[int, int] | None = None
) -> tuple[Ranks, Ranks]:
    """Return `first_ranks` by exact cosine of all images and of all texts, from one pass over blocks: (S,) and (T,).

    Memory beyond the embeddings: their rows at unit length in float32, and some blocks.

    Args:
        images: (S, D).
        texts: (T, D), on the same device.
        relevant: (S, T) sparse.
        block: how many images and texts a block has; None: as many as suit the device.

    Raises:
        CusaError: an embedding is not finite, the shapes disagree, or an image or text has no relevant partner.
    """
    relevant = checked_relevance(relevant, (len(images), len(texts)))
    checked_relevance(sparse.csr_array(relevant.T), (len(texts), len(images)))
    images, texts = unit_rows(images), unit_rows(texts)
    pairs = sparse.coo_array(relevant)
    row, column = (torch.from_numpy(index.astype(np.int64)).to(images.device) for index in (pairs.row, pairs.col))
    scores = pair_cosine(images, texts, row, column)
    image_side, text_side = _side(images, row, column, scores), _side(texts, column, row, scores)
    # A processor's blocks should stay in its cache.
    height, width = block or ((4096, 16384) if images.device.type == "cuda" else (512, 2048))
    memory = torch.empty((2, min(height, len(images)), min(width, len(texts))), device=images.device)
    with full_precision(images.device):
        for first in range(0, len(images), height):
            for left in range(0, len(texts), width):
                part, other = images[first : first + height], texts[left : left + width]
                rough, marks = memory[:, : len(part), : len(other)]
                torch.mm(part, other.T, out=rough)
                _count(rough, marks, image_side, first, texts, left)
                _count(rough.T, marks.T, text_side, left, images, first)
    return image_side.ahead.cpu().numpy(), text_side.ahead.cpu().numpy()


def top(rows: Rows, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield each query's `count` best candidates, best first, in blocks of (b, count), in the order of the queries.

    Fewer candidates than that are all ranked.
    """
    count = min(count, rows.shape[1])
    for scores in rows:
        last = scores.topk(count, dim=1).values[:, -1:]
        taken = scores >= last
        # As int8 in int32, booleans are summed several times faster than by torch's own sum of them.
        if len(over := (taken.view(torch.int8).sum(1, dtype=torch.int32) > count).nonzero()[:, 0]):
            # Of those equal to the last, only the first so many by row.
            tied, spare = scores[over] == last[over], count - (scores[over] > last[over]).sum(dim=1, keepdim=True)
            taken[over] &= ~tied | (tied.cumsum(dim=1, dtype=torch.int32) <= spare)
        found = taken.nonzero()[:, 1].view(len(scores), count)
        order = scores.gather(1, found).sort(dim=1, descending=True, stable=True).indices
        yield found.gather(1, order).cpu().numpy()


def nearest(rows: Rows) -> NDArray[np.int64]:
    """Return each query's most similar candidate: (Q,)."""
    return np.concatenate([scores.argmax(dim=1).cpu().numpy() for scores in rows])


def nearest_other(embeddings: Tensor, block: int | None = None) -> NDArray[np.int64]:
    """Return each row's most similar other row by exact cosine: (N,).

    Raises:
        CusaError: there are fewer than two rows, or one is not finite.
    """
    if len(embeddings) < 2:
        raise CusaError(f"The nearest other row was asked for among {len(embeddings)}; at least 2 are needed.")
    found, start = [], 0
    for scores in CosineRows(queries=embeddings, candidates=embeddings, block=block):
        scores[range(len(scores)), range(start, start + len(scores))] = -torch.inf
        found.append(scores.argmax(dim=1).cpu().numpy())
        start += len(scores)
    return np.concatenate(found)


def checked_relevance(relevant: sparse.csr_array, shape: tuple[int, int]) -> sparse.csr_array:
    """Return (Q, C) relevance as booleans, each pair once, columns sorted.

    Raises:
        CusaError: it has another shape, or a query has no relevant candidate.
    """
    if relevant.shape != shape:
        raise CusaError(f"The similarity is {shape}, the relevance {relevant.shape}; they must agree.")
    relevant = sparse.csr_array(relevant.astype(bool), copy=True)
    relevant.sum_duplicates()
    relevant.eliminate_zeros()
    lonely = np.flatnonzero(np.diff(relevant.indptr) == 0)
    if len(lonely):
        raise CusaError(f"{len(lonely)} queries have no relevant candidate (first: {lonely[0]}); leave them out.")
    return relevant


class _Side(NamedTuple):
    """The queries of one direction: (Q, D) rows, each one's best relevant candidate, and how many rank before that."""

    rows: Tensor
    best: Tensor
    place: Tensor
    ahead: Tensor


def _side(rows: Tensor, query: Tensor, candidate: Tensor, scores: Tensor) -> _Side:
    """Find the best relevant candidate of every query among the relevant pairs."""
    best = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, query, scores, "amax")
    reached = scores == best[query]
    place = torch.full((len(rows),), torch.iinfo(torch.int64).max, device=rows.device)
    place.scatter_reduce_(0, query[reached], candidate[reached], "amin")
    return _Side(rows, best, place, torch.zeros_like(place))


def _count(rough: Tensor, marks: Tensor, side: _Side, first: int, candidates: Tensor, left: int) -> None:
    """Add to `side.ahead` how many candidates of a block rank before each query's best relevant one.

    `rough` is the block in float32; its rows are queries from `first`, its columns candidates from `left`. `marks` is
    room of the same shape: comparing and summing in float32 is several times faster in torch than by booleans.
    """
    queries = slice(first, first + rough.shape[0])
    # The bound on a float32 dot product in any order of summing, and 8 units for rounding the thresholds.
    margin = (candidates.shape[1] + 8) * torch.finfo(torch.float32).eps / 2
    low, high = ((side.best[queries] + shift).float()[:, None] for shift in (-margin, margin))
    above = torch.gt(rough, high, out=marks).sum(dim=1)
    unsure = torch.gt(rough, low, out=marks).sum(dim=1) - above
    side.ahead[queries] += above.long()
    # The best relevant candidate, where it is in this block, lies inside its own error margin: it is not uncertain.
    places = side.place[queries] - left
    unsure -= ((places >= 0) & (places < rough.shape[1])).float()
    some = unsure.nonzero()[:, 0]
    rough = rough[some]
    near = (rough > low[some]) & (rough <= high[some])
    best, place = side.best[queries][some], side.place[queries][some]
    if int(unsure.sum()) > marks.numel() / NEAR:
        exact = cosine(side.rows[queries][some], candidates[left : left + rough.shape[1]].double())
        columns = torch.arange(left, left + rough.shape[1], device=rough.device)
        near &= (exact > best[:, None]) | ((exact == best[:, None]) & (columns < place[:, None]))
        side.ahead.index_add_(0, first + some, near.sum(dim=1))
    else:
        row, column = near.nonzero().unbind(1)
        exact = pair_cosine(side.rows, candidates, first + some[row], left + column)
        wins = (exact > best[row]) | ((exact == best[row]) & (left + column < place[row]))
        side.ahead.index_add_(0, first + some[row], wins.long())


def block_rows(device: torch.device, candidates: int) -> int:
    """Return how many queries a block of whole rows may have."""
    return max(32, (2**27 if device.type == "cuda" else 2**21) // candidates)
