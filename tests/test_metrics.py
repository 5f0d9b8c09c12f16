"""Metrics against tables worked out by hand, against slow definitions, and against the authors' own package."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import sparse

from stores import CusaError
from train.evaluation.metrics import class_recall, many_to_many, median_rank, most_relevant, recalls, spearman
from train.evaluation.rankings import Rows, first_ranks, top
from train.evaluation.similarities import ScoreMatrix


def relevance(rows: list[list[int]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, dtype=bool))


def rows(similarity: np.ndarray) -> Rows:
    """Rank by a similarity that is given."""
    return ScoreMatrix(similarity, *(np.arange(count) for count in similarity.shape)).rows()


def random_case(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities with many ties, and relevance of one to many candidates a query."""
    similarity = random.integers(0, 4, size=(6, 11)).astype(np.float32)
    relevant = random.random((6, 11)) < 0.3
    relevant[np.arange(6), random.integers(11, size=6)] = True
    return similarity, relevant


def test_recalls_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]], dtype=np.float32)
    ranks = first_ranks(rows(similarity), relevance([[1, 0, 0], [0, 1, 0], [0, 0, 1]]))
    assert ranks.tolist() == [0, 2, 2]
    assert recalls(ranks) == {"R@1": pytest.approx(100 / 3), "R@5": 100.0, "R@10": 100.0}
    assert median_rank(ranks) == 3.0


def test_any_own_caption_is_a_hit() -> None:
    similarity = np.array([[0.1, 0.8, 0.9, 0.2]], dtype=np.float32)
    assert first_ranks(rows(similarity), relevance([[1, 1, 0, 0]])).tolist() == [1]


def test_many_to_many_by_hand() -> None:
    # Ranking: 0, 1, 2, 3. Relevant: 0, 2, 3, so R = 3; among the first three, hits at ranks 1 and 3.
    measured = many_to_many([np.array([[0, 1, 2, 3]])], relevance([[1, 0, 1, 1]]))
    assert measured["mAP@R"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert measured["R-Precision"] == pytest.approx(100 * 2 / 3)
    assert measured["R@1"] == 100.0


def test_against_full_sorting_with_many_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        similarity, relevant = random_case(random)
        order = np.argsort(-similarity, axis=1, kind="stable")
        hits = np.take_along_axis(relevant, order, axis=1)
        matrix = sparse.csr_array(relevant)
        assert first_ranks(rows(similarity), matrix).tolist() == hits.argmax(axis=1).tolist()
        average = [sum(row[k] * row[: k + 1].mean() for k in range(row.sum())) / row.sum() for row in hits]
        measured = many_to_many(top(rows(similarity), most_relevant(matrix)), matrix)
        assert measured["mAP@R"] == pytest.approx(100 * np.mean(average))


def test_as_the_authors_package_measures() -> None:
    """ECCV Caption's own code gives the same mAP@R, R-Precision and R@1 on random rankings."""
    with warnings.catch_warnings():
        # It warns where an optional package is absent.
        warnings.simplefilter("ignore")
        package = pytest.importorskip("eccv_caption._metrics", reason="needs the extra eccv")
    random = np.random.default_rng(1)
    for _ in range(20):
        similarity, relevant = random_case(random)
        matrix = sparse.csr_array(relevant)
        lists = np.concatenate(list(top(rows(similarity), 11)))
        theirs = package.compute_eccv_metrics(
            {100 + query: (1000 + row).tolist() for query, row in enumerate(lists)},
            {100 + query: (1000 + np.flatnonzero(row)).tolist() for query, row in enumerate(relevant)},
        )
        ours = many_to_many([lists[:3], lists[3:]], matrix)
        names = {"mAP@R": "eccv_map_at_r", "R-Precision": "eccv_rprecision", "R@1": "eccv_r1"}
        assert ours == {name: pytest.approx(100 * theirs[their], abs=1e-10) for name, their in names.items()}


def test_relevance_and_rankings_must_fit() -> None:
    with pytest.raises(CusaError, match="1 queries have no relevant candidate"):
        many_to_many([np.array([[0], [0]])], relevance([[1, 0], [0, 0]]))
    with pytest.raises(CusaError, match="2 queries with up to 2 candidates"):
        many_to_many([np.array([[0], [0]])], relevance([[1, 1], [1, 0]]))
    with pytest.raises(CusaError, match="The rankings hold 1 queries, the relevance 2"):
        many_to_many([np.array([[0]])], relevance([[1, 0], [1, 0]]))


def test_class_recall_by_hand() -> None:
    assert class_recall(np.array(["b", "a", "b"]), np.array(["a", "b", "b"])) == pytest.approx(100 / 3)


def test_spearman_is_times_hundred() -> None:
    assert spearman(np.array([0.1, 0.2, 0.9]), np.array([1.0, 3.0, 2.0])) == pytest.approx(50.0)
