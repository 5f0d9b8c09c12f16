"""Metrics against tables worked out by hand, and against slow definitions on random rankings with ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stores import CusaError
from train.metrics import class_recall, first_ranks, many_to_many, recalls, spearman


def relevance(rows: list[list[int]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, dtype=bool))


def test_recalls_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]], dtype=np.float32)
    ranks = first_ranks(similarity, relevance([[1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert ranks.tolist() == [0, 2, 2]
    assert recalls(ranks) == {"R@1": pytest.approx(100 / 3), "R@5": 100.0, "R@10": 100.0}


def test_any_own_caption_is_a_hit() -> None:
    similarity = np.array([[0.1, 0.8, 0.9, 0.2]], dtype=np.float32)
    assert first_ranks(similarity, relevance([[1, 1, 0, 0]])).tolist() == [1]


def test_ties_are_broken_by_row() -> None:
    similarity = np.zeros((2, 3), dtype=np.float32)
    assert first_ranks(similarity, relevance([[0, 0, 1], [1, 0, 0]])).tolist() == [2, 0]
    assert many_to_many(similarity, relevance([[0, 0, 1], [1, 0, 0]]))["R@1"] == 50.0


def test_many_to_many_by_hand() -> None:
    # Ranking: 0, 1, 2, 3. Relevant: 0, 2, 3, so R = 3; among the first three, hits at ranks 1 and 3.
    similarity = np.array([[0.9, 0.8, 0.7, 0.6]], dtype=np.float32)
    measured = many_to_many(similarity, relevance([[1, 0, 1, 1]]))
    assert measured["mAP@R"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert measured["R-Precision"] == pytest.approx(100 * 2 / 3)
    assert measured["R@1"] == 100.0


def test_against_full_sorting_with_many_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        similarity = random.integers(0, 4, size=(6, 11)).astype(np.float32)
        relevant = random.random((6, 11)) < 0.3
        relevant[np.arange(6), random.integers(11, size=6)] = True
        order = np.lexsort((np.broadcast_to(np.arange(11), (6, 11)), -similarity))
        hits = np.take_along_axis(relevant, order, axis=1)
        assert first_ranks(similarity, sparse.csr_array(relevant)).tolist() == hits.argmax(axis=1).tolist()
        average = []
        for row in hits:
            count = row.sum()
            average.append(sum(row[k] * row[: k + 1].mean() for k in range(count)) / count)
        assert many_to_many(similarity, sparse.csr_array(relevant))["mAP@R"] == pytest.approx(100 * np.mean(average))


def test_class_recall_by_hand() -> None:
    similarity = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.8], [0.1, 0.8, 1.0]], dtype=np.float32)
    assert class_recall(similarity, np.array(["a", "b", "b"])) == pytest.approx(100 / 3)


def test_spearman_is_times_hundred() -> None:
    assert spearman(np.array([0.1, 0.2, 0.9]), np.array([1.0, 3.0, 2.0])) == pytest.approx(50.0)


def test_a_query_without_relevant_candidates_is_refused() -> None:
    with pytest.raises(CusaError, match="1 queries have no relevant candidate"):
        first_ranks(np.zeros((2, 2), np.float32), relevance([[1, 0], [0, 0]]))


def test_broken_embeddings_are_refused() -> None:
    with pytest.raises(CusaError, match="not finite"):
        many_to_many(np.array([[np.nan, 0.0]]), relevance([[1, 0]]))
