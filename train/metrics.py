"""Retrieval metrics as pure functions (protocols in METHODS: R@K, mAP@R, R-Precision, class R@1, Spearman).

Every ranking orders candidates by falling similarity, and equal ones by rising row, for every model alike.
Shapes: Q queries, C candidates.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import spearmanr

from stores.errors import CusaError

KS: Final = (1, 5, 10)
Array = NDArray[Any]


def first_ranks(similarity: Array, relevant: sparse.csr_array) -> NDArray[np.int64]:
    """Return the best rank (from 0) among each query's relevant candidates: (Q,).

    Args:
        similarity: (Q, C), finite.
        relevant: (Q, C) sparse, with at least one entry a row.

    Raises:
        CusaError: a similarity is not finite, or a query has no relevant candidate.
    """
    _check(similarity, relevant)
    ranks = np.empty(len(similarity), dtype=np.int64)
    for query, scores in enumerate(similarity):
        own = _row(relevant, query)
        best = own[scores[own] == scores[own].max()].min()
        ranks[query] = (scores > scores[best]).sum() + (scores[:best] == scores[best]).sum()
    return ranks


def recalls(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in percent."""
    return {f"R@{k}": float(100.0 * (ranks < k).mean()) for k in KS}


def many_to_many(similarity: Array, relevant: sparse.csr_array) -> dict[str, float]:
    """Return mAP@R, R-Precision and R@1 in percent, where a query may have many relevant candidates.

    With R relevant candidates, mAP@R is the mean over queries of (1/R) Σ_{k≤R} [k-th is relevant] · precision@k, and
    R-Precision the share of relevant ones among the first R (Musgrave et al., ECCV 2020; ECCV Caption, 2022).
    """
    _check(similarity, relevant)
    precision, average, top = [], [], []
    for query, scores in enumerate(similarity):
        own = _row(relevant, query)
        ranked = _top(scores, len(own))
        hits = np.isin(ranked, own)
        precision.append(hits.mean())
        average.append((hits * np.cumsum(hits) / np.arange(1, len(own) + 1)).mean())
        top.append(hits[0])
    return {
        "mAP@R": float(100.0 * np.mean(average)),
        "R-Precision": float(100.0 * np.mean(precision)),
        "R@1": float(100.0 * np.mean(top)),
    }


def class_recall(similarity: Array, labels: Array) -> float:
    """Return the share in percent of items whose most similar other item has the same label; (Q, Q) and (Q,)."""
    _check_finite(similarity)
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return float(100.0 * (labels[others.argmax(axis=1)] == labels).mean())


def spearman(scores: Array, gold: Array) -> float:
    """Return Spearman's rank correlation × 100."""
    return float(100.0 * spearmanr(scores, gold).statistic)


def _check(similarity: Array, relevant: sparse.csr_array) -> None:
    if similarity.shape != relevant.shape:
        raise CusaError(f"The similarity is {similarity.shape}, the relevance {relevant.shape}; they must agree.")
    _check_finite(similarity)
    lonely = np.flatnonzero(np.diff(relevant.indptr) == 0)
    if len(lonely):
        raise CusaError(f"{len(lonely)} queries have no relevant candidate (first: {lonely[0]}); leave them out.")


def _check_finite(similarity: Array) -> None:
    if not np.isfinite(similarity).all():
        raise CusaError("The similarities hold values that are not finite; the embeddings are broken.")


def _row(relevant: sparse.csr_array, query: int) -> NDArray[np.int32]:
    indices: NDArray[np.int32] = relevant.indices[relevant.indptr[query] : relevant.indptr[query + 1]]
    return indices


def _top(scores: Array, count: int) -> NDArray[np.int64]:
    """Return the `count` best candidates, best first, equal ones by row."""
    reached = np.partition(scores, -count)[-count]
    among = np.flatnonzero(scores >= reached)
    return among[np.argsort(-scores[among], kind="stable")][:count]
