"""Retrieval metrics as pure functions of rankings (protocols: docs/methods.md §4).

The rankings are those of `train.evaluation.rankings`. Shapes: Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stores.errors import CusaError
from train.evaluation.rankings import checked_relevance

KS: Final = (1, 5, 10)
Array = NDArray[Any]


def recalls(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in percent of (Q,) ranks, which count from 0."""
    return {f"R@{k}": float(100.0 * (ranks < k).mean()) for k in KS}


def median_rank(ranks: NDArray[np.int64]) -> float:
    """Return the median of (Q,) ranks, counted from 1 as usual in tables."""
    return float(np.median(ranks) + 1)


def most_relevant(relevant: sparse.csr_array) -> int:
    """Return how long the rankings must be for `many_to_many`: the most relevant candidates that a query has."""
    return int(np.diff(relevant.indptr).max())


def many_to_many(ranked: Iterable[NDArray[np.int64]], relevant: sparse.csr_array) -> dict[str, float]:
    """Return mAP@R, R-Precision and R@1 in percent, where a query may have many relevant candidates.

    With R relevant candidates, mAP@R is the mean over queries of (1/R) Σ_{k≤R} [k-th is relevant] · precision@k, and
    R-Precision the share of relevant ones among the first R (Musgrave et al., ECCV 2020; ECCV Caption, 2022).

    Args:
        ranked: blocks of queries, in their order: (b, n) candidates, best first, with n ≥ `most_relevant`.
        relevant: (Q, C) sparse.

    Raises:
        CusaError: a query has no relevant candidate, or the rankings are too short or of another number of queries.
    """
    relevant = checked_relevance(relevant, relevant.shape)
    longest, counts = most_relevant(relevant), np.diff(relevant.indptr)
    figures, start = np.empty((len(counts), 3)), 0
    for block in ranked:
        stop = start + len(block)
        if stop > len(counts) or block.shape[1] < longest:
            raise CusaError(
                f"The rankings hold {stop} or more queries and {block.shape[1]} candidates each; "
                f"the relevance has {len(counts)} queries with up to {longest} candidates."
            )
        asked = counts[start:stop, None]
        hits = np.take_along_axis(relevant[start:stop].toarray(), block[:, :longest], axis=1)
        places = np.arange(1, longest + 1)
        counted = hits & (places <= asked)
        precision = counted.cumsum(axis=1) / places
        figures[start:stop] = np.stack(
            [(counted * precision).sum(axis=1) / asked[:, 0], counted.sum(axis=1) / asked[:, 0], hits[:, 0]], axis=1
        )
        start = stop
    if start != len(counts):
        raise CusaError(f"The rankings hold {start} queries, the relevance {len(counts)}; they must agree.")
    return dict(zip(("mAP@R", "R-Precision", "R@1"), (100.0 * figures.mean(axis=0)).tolist(), strict=True))


def class_recall(nearest: Array, labels: Array) -> float:
    """Return the share in percent of queries whose nearest item has their label: (Q,) labels of both."""
    return float(100.0 * (nearest == labels).mean())


def paired_cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row of (n, D) `first` with that of `second`: (n,); zero where one has no length."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: NDArray[np.float32] = np.einsum("nd,nd->n", first, second)
    cosines: NDArray[np.float32] = products / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosines


def spearman(scores: Array, gold: Array) -> float:
    """Return Spearman's rank correlation × 100 of (n,) similarities with (n,) gold scores.

    Raises:
        CusaError: all similarities, or all gold scores, are one.
    """
    for values, found in ((gold, "do not differ in their gold scores"), (scores, "are all equally similar")):
        if len(np.unique(values)) < 2:
            raise CusaError(f"The {len(gold):,} pairs {found}; there is nothing to correlate.")
    # Imported late: it takes a second to load, and trainings of data sets without graded pairs never come here.
    from scipy.stats import spearmanr

    return float(100.0 * spearmanr(scores, gold).statistic)
