"""Exact rankings against a brute-force oracle in whole numbers: ties, odd shapes, every block size, broken input."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from models.encoded import Encoded
from models.scoring import Cosine, OwnSimilarity
from stores import CusaError
from train.evaluation import rankings
from train.evaluation.evaluate import cross_modal
from train.evaluation.exact_cosine import unit_rows
from train.evaluation.rankings import CosineRows, Rows, first_ranks, nearest, nearest_other, ranks_both_ways, top
from train.evaluation.similarities import CosineSimilarities, ScoreMatrix, similarities


def embeddings(random: np.random.Generator, rows: int, kind: str, size: int = 8) -> Tensor:
    """Return (rows, size) embeddings: of few values and so with many ties, almost equal, all equal, or just random."""
    values = random.standard_normal((rows, size))
    if kind == "tied":
        values = random.integers(-1, 2, size=(rows, size)).astype(float)
    if kind == "close":
        values = np.ones((rows, size)) + 1e-7 * random.integers(0, 4, size=(rows, size))
    if kind == "equal":
        values = np.ones((rows, size))
    return torch.from_numpy(values.astype(np.float32))


def relevance(random: np.random.Generator, rows: int, columns: int) -> sparse.csr_array:
    """Return a random sparse relevance in which no row and no column is empty."""
    matrix = random.random((rows, columns)) < 0.15
    matrix[np.arange(rows), random.integers(columns, size=rows)] = True
    matrix[random.integers(rows, size=columns), np.arange(columns)] = True
    return sparse.csr_array(matrix)


def oracle(queries: Tensor, candidates: Tensor) -> list[list[int]]:
    """Return every query's full ranking, by exact fractions of the unit rows."""
    units = [[[Fraction(x) for x in row] for row in unit_rows(side).tolist()] for side in (queries, candidates)]
    scores = [[sum(a * b for a, b in zip(q, c, strict=True)) for c in units[1]] for q in units[0]]
    return [sorted(range(len(row)), key=lambda place, row=row: (-row[place], place)) for row in scores]


def oracle_ranks(ranking: list[list[int]], relevant: sparse.csr_array) -> list[int]:
    dense = relevant.toarray()
    return [min(order.index(own) for own in np.flatnonzero(row)) for order, row in zip(ranking, dense, strict=True)]


def matrix_rows(scores: Tensor) -> Rows:
    """Rows of scores that are given."""
    return matrix(scores).rows()


def matrix(scores: Tensor) -> ScoreMatrix:
    return ScoreMatrix(scores.float().numpy(), *(np.arange(count) for count in scores.shape))


KINDS = ("random", "tied", "close", "equal")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 23)])
def test_every_ranking_is_the_oracles(
    kind: str, shape: tuple[int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng([*shape, KINDS.index(kind)])
    images, texts = (embeddings(random, rows, kind).to(device) for rows in shape)
    relevant = relevance(random, *shape)
    there, back = oracle(images, texts), oracle(texts, images)
    expected = oracle_ranks(there, relevant), oracle_ranks(back, sparse.csr_array(relevant.T))
    # Near pairs are computed again as whole blocks, or one by one: small blocks would never come to the second.
    for near in (rankings.NEAR, 1e-9):
        monkeypatch.setattr(rankings, "NEAR", near)
        for block in ((1, 1), (2, 3), (3, 100), (100, 4), None):
            ranks = ranks_both_ways(images, texts, relevant, block)
            assert (ranks[0].tolist(), ranks[1].tolist()) == expected
    for queries in (1, 3, None):
        rows = CosineRows(queries=images, candidates=texts, block=queries)
        assert first_ranks(rows, relevant).tolist() == expected[0]
        for count in (1, 5, shape[1], shape[1] + 7):
            assert np.concatenate(list(top(rows, count))).tolist() == [order[:count] for order in there]
        assert nearest(rows).tolist() == [order[0] for order in there]


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_other_row_is_the_oracles(kind: str) -> None:
    rows = embeddings(np.random.default_rng(KINDS.index(kind)), 12, kind)
    expected = [next(other for other in order if other != row) for row, order in enumerate(oracle(rows, rows))]
    for block in (1, 5, None):
        assert nearest_other(rows, block).tolist() == expected


def test_a_pairs_similarity_is_one_number_in_every_block_and_direction() -> None:
    random = np.random.default_rng(0)
    queries, candidates = embeddings(random, 37, "random", 512), embeddings(random, 91, "random", 512)
    whole = torch.cat(list(CosineRows(queries=queries, candidates=candidates)))
    back = torch.cat(list(CosineRows(queries=candidates, candidates=queries, block=7)))
    assert torch.equal(whole, back.T)
    assert all(
        torch.equal(whole[:, [place]], next(iter(CosineRows(queries=queries, candidates=candidates[[place]]))))
        for place in (0, 13, 90)
    )
    true = torch.nn.functional.normalize(queries.double()) @ torch.nn.functional.normalize(candidates.double()).T
    assert (whole - true).abs().max() < 2.0**-23


def test_identical_embeddings_tie_wherever_they_stand() -> None:
    random = np.random.default_rng(1)
    queries, candidates = embeddings(random, 5, "random", 100), embeddings(random, 300, "random", 100)
    candidates[[3, 64, 299]] = queries[0] * torch.tensor([[1.0], [4.0], [0.125]])
    assert next(iter(top(CosineRows(queries=queries, candidates=candidates), 3)))[0].tolist() == [3, 64, 299]
    relevant = sparse.csr_array(np.eye(5, 300, k=60, dtype=bool) + np.eye(5, 300, k=299, dtype=bool))
    assert first_ranks(CosineRows(queries=queries, candidates=candidates), relevant)[0] == 2


def test_the_fast_ranks_are_exact_where_float32_is_not() -> None:
    """Candidates that differ by less than a float32 product's error: the two ways to rank them must agree."""
    random = np.random.default_rng(2)
    image = random.standard_normal((1, 256))
    images = torch.from_numpy((image + 1e-5 * random.standard_normal((40, 256))).astype(np.float32))
    texts = torch.from_numpy((image + 1e-5 * random.standard_normal((200, 256))).astype(np.float32))
    relevant = sparse.csr_array(np.kron(np.eye(40, dtype=bool), np.ones((1, 5), dtype=bool)))
    ranks = ranks_both_ways(images, texts, relevant, (16, 64))
    assert ranks[0].tolist() == first_ranks(CosineRows(queries=images, candidates=texts), relevant).tolist()
    assert (
        ranks[1].tolist()
        == first_ranks(CosineRows(queries=texts, candidates=images), sparse.csr_array(relevant.T)).tolist()
    )
    rough = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    rounded = first_ranks(matrix_rows(rough), relevant)
    assert rounded.tolist() != ranks[0].tolist(), "float32 alone would do, so this test shows nothing"


def test_scores_of_any_scorer_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    scores = torch.from_numpy(random.integers(0, 5, size=(6, 14)).astype(np.float32))
    relevant = relevance(random, 6, 14)
    there, back = (np.argsort(-side, axis=1, kind="stable").tolist() for side in (scores.numpy(), scores.T.numpy()))
    expected = oracle_ranks(there, relevant), oracle_ranks(back, sparse.csr_array(relevant.T))
    for block in (1, 4, 100):
        monkeypatch.setattr("train.evaluation.similarities.block_rows", lambda *_, block=block: block)
        found = matrix(scores)
        assert [ranks.tolist() for ranks in found.ranks(relevant)] == list(expected)
        assert np.concatenate(list(top(found.rows(), 14))).tolist() == there
        assert np.concatenate(list(top(found.columns(np.array([3, 0])), 6))).tolist() == [back[3], back[0]]
        part = found.part(np.array([4, 1]), np.array([2, 9, 7]))
        assert part.block(np.array([1]), np.array([2, 0])).tolist() == [[scores[1, 7], scores[1, 2]]]
    measured = cross_modal(matrix(scores), relevant)
    assert measured["text_to_image"]["R@1"] == 100 * np.mean(np.array(expected[1]) == 0)
    assert measured["median_rank"]["text_to_image"] == np.median(expected[1]) + 1


class Counting:
    """Scores pairs by minus their distance, and remembers how many it was asked for; breaks down where it is told."""

    pair_bytes = 2**26

    def __init__(self, last: int = 10**9) -> None:
        self.asked, self.last = 0, last

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        self.asked += first.size * second.size
        if self.asked > self.last:
            raise RuntimeError("out of order")
        return -torch.cdist(first.vector, second.vector, p=1)

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        return -(first.vector - second.vector).abs().sum(dim=1)


def test_every_pair_is_scored_once_and_an_interrupted_scoring_goes_on(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    sides = [Encoded(embeddings(random, rows, "random")) for rows in (9, 14)]
    expected = -torch.cdist(sides[0].vector, sides[1].vector, p=1)
    whole = Counting()
    found = similarities(whole, *sides, torch.device("cpu"), tmp_path)
    assert found.shape == (9, 14)
    torch.testing.assert_close(found.block(np.arange(9), np.arange(14)), expected)
    found.ranks(relevance(random, 9, 14))
    assert whole.asked == 9 * 14
    assert list(tmp_path.iterdir()) == [], "the file goes with those who read it"
    broken = Counting(last=100)
    with pytest.raises(RuntimeError, match="out of order"):
        similarities(broken, *sides, torch.device("cpu"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    other = [Encoded(side.vector + 1) for side in sides]
    again, elsewhere = Counting(), Counting()
    found = similarities(again, *sides, torch.device("cpu"), tmp_path)
    torch.testing.assert_close(found.block(np.arange(9), np.arange(14)), expected)
    assert 0 < again.asked < 9 * 14
    with pytest.raises(RuntimeError, match="out of order"):
        similarities(Counting(last=100), *sides, torch.device("cpu"), tmp_path)
    similarities(elsewhere, *other, torch.device("cpu"), tmp_path)
    assert elsewhere.asked == 9 * 14, "what others have begun is of no use"


def test_five_folds_are_five_searches() -> None:
    random = np.random.default_rng(4)
    images, texts = embeddings(random, 10, "random"), embeddings(random, 20, "random")
    owner = np.sort(np.concatenate([np.arange(10), random.integers(10, size=10)]))
    own = sparse.csr_array(owner == np.arange(10)[:, None])
    alone = []
    for fold in range(5):
        theirs = owner // 2 == fold
        part = sparse.csr_array(own.toarray()[2 * fold : 2 * fold + 2][:, theirs])
        alone.append(cross_modal(CosineSimilarities(images[2 * fold : 2 * fold + 2], texts[theirs]), part))
    found = CosineSimilarities(images, texts)
    measured = cross_modal(found, own, folds=5)
    assert measured["RSUM"] == pytest.approx(np.mean([one["RSUM"] for one in alone]))
    assert measured["image_to_text"]["R@1"] == pytest.approx(np.mean([one["image_to_text"]["R@1"] for one in alone]))
    assert measured["RSUM"] > cross_modal(found, own)["RSUM"], "among fewer candidates it is easier"
    with pytest.raises(CusaError, match="10 images do not divide into 3 folds"):
        cross_modal(found, own, folds=3)


def test_broken_input_is_refused(tmp_path: Path) -> None:
    good, bad = torch.eye(3), torch.eye(3)
    bad[1, 2] = torch.inf
    own, lonely = sparse.csr_array(np.eye(3, dtype=bool)), sparse.csr_array(np.diag([True, False, True]))
    calls: list[Callable[[Tensor, Tensor], object]] = [
        lambda a, b: ranks_both_ways(a, b, own),
        lambda a, b: first_ranks(CosineRows(queries=a, candidates=b), own),
        lambda a, b: list(top(CosineRows(queries=a, candidates=b), 2)),
        lambda a, b: nearest(CosineRows(queries=a, candidates=b)),
    ]
    for call in calls:
        call(good, good)
        for images, texts in ((good, bad), (bad, good)):
            with pytest.raises(CusaError, match="embeddings hold values that are not finite"):
                call(images, texts)
    with pytest.raises(CusaError, match="1 queries have no relevant candidate \\(first: 1\\); leave them out"):
        ranks_both_ways(good, good, lonely)
    one_way = sparse.csr_array(np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=bool))
    with pytest.raises(CusaError, match="1 queries have no relevant candidate"):
        ranks_both_ways(good, good, one_way)
    with pytest.raises(CusaError, match=r"The similarity is \(3, 2\), the relevance \(3, 3\)"):
        ranks_both_ways(good, good[:2], own)
    with pytest.raises(CusaError, match=r"The embeddings are \(0, 3\)"):
        nearest(CosineRows(queries=good[:0], candidates=good))
    sides = Encoded(good), Encoded(good[:2])
    for scores, message in (
        (torch.full((3, 2), torch.nan), "scores are not finite"),
        (torch.ones(3), r"scorer returned \(3,\) for 3 and 2 items; expected \(3, 2\)"),
    ):
        with pytest.raises(CusaError, match=message):
            similarities(OwnSimilarity(lambda *_, scores=scores: scores), *sides, torch.device("cpu"), tmp_path)
    with pytest.raises(CusaError, match="There are 0 and 2 items"):
        similarities(Cosine(), Encoded(good[:0]), sides[1], torch.device("cpu"), tmp_path)
    with pytest.raises(CusaError, match="at least 2 are needed"):
        nearest_other(good[:1])


def test_low_precision_settings_of_the_caller_change_nothing() -> None:
    random = np.random.default_rng(5)
    images, texts = embeddings(random, 30, "random", 64), embeddings(random, 60, "random", 64)
    relevant = relevance(random, 30, 60)
    plain = ranks_both_ways(images, texts, relevant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all((a == b).all() for a, b in zip(plain, ranks_both_ways(images, texts, relevant), strict=True))


def test_zero_embeddings_are_similar_to_nothing() -> None:
    rows = unit_rows(torch.tensor([[0.0, 0.0], [3e38, 3e38], [1e-40, 0.0]]))
    assert rows.tolist() == [[0, 0], [round(2**23.5) / 2**24] * 2, [1, 0]]
