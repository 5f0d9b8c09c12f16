"""The losses against loops written from the equations, in value and in every gradient, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from train.losses.functional import (
    cosine_similarity,
    csa_loss,
    hinge,
    info_nce,
    mixed_targets,
    soft_alignment,
    soft_targets,
    symmetric_cross_entropy,
    symmetric_divergence,
    usa_loss,
)

TOLERANCE = 1e-10


def loop_softmax(row: list[Tensor], tau: Tensor | float) -> list[Tensor]:
    """exp(s_j / τ) / Σ_k exp(s_k / τ), element by element."""
    terms = [torch.exp(value / tau) for value in row]
    return [term / sum(terms) for term in terms]


def loop_rows(matrix: Tensor) -> list[list[Tensor]]:
    return [[matrix[i, j] for j in range(matrix.shape[1])] for i in range(matrix.shape[0])]


def loop_info_nce(similarity: Tensor, reverse: Tensor, tau: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Eq. 1–4 with targets shared among pairs of one group."""
    total = torch.zeros((), dtype=similarity.dtype)
    for matrix in (similarity, reverse):
        for i, row in enumerate(loop_rows(matrix)):
            members = [j for j in range(len(columns)) if columns[j] == rows[i]]
            probability = loop_softmax(row, tau)
            total = total - sum(torch.log(probability[j]) for j in members) / len(members)
    return total / (2 * len(rows))


def loop_alignment(similarity: Tensor, targets: Tensor, tau: Tensor) -> Tensor:
    """mean_i Σ_j P_ij (log P_ij − log Q_ij)."""
    total = torch.zeros((), dtype=similarity.dtype)
    for i, row in enumerate(loop_rows(similarity)):
        for j, q in enumerate(loop_softmax(row, tau)):
            if targets[i, j] > 0:
                total = total + targets[i, j] * (torch.log(targets[i, j]) - torch.log(q))
    return total / len(similarity)


def loop_cosine(a: Tensor, b: Tensor) -> Tensor:
    def cosine(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum() / (torch.sqrt((x * x).sum()) * torch.sqrt((y * y).sum()))

    return torch.stack([torch.stack([cosine(x, y) for y in b]) for x in a])


def embeddings(count: int, *dims: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(count, dim, generator=generator, dtype=torch.float64) for dim in dims]


def agree(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Require equal values and equal gradients for every input, after showing that no gradient is all zero."""
    results = []
    for function in (fast, slow):
        fresh = [tensor.clone().requires_grad_() for tensor in inputs]
        value = function(*fresh)
        results.append((value.detach(), torch.autograd.grad(value, fresh)))
    (fast_value, fast_gradients), (slow_value, slow_gradients) = results
    torch.testing.assert_close(fast_value, slow_value, rtol=TOLERANCE, atol=TOLERANCE)
    for fast_gradient, slow_gradient in zip(fast_gradients, slow_gradients, strict=True):
        assert slow_gradient.abs().max() > 1e-6
        torch.testing.assert_close(fast_gradient, slow_gradient, rtol=TOLERANCE, atol=TOLERANCE)


def tau(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 0], [7, 7, 7, 7, 7]])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.10])
def test_info_nce_is_the_equation(groups: list[int], temperature: float) -> None:
    image, text = embeddings(5, 8, 8)
    group = torch.tensor(groups)
    agree(
        lambda i, t, s: info_nce(cosine_similarity(i, t), s, group),
        lambda i, t, s: loop_info_nce(loop_cosine(i, t), loop_cosine(t, i), s, group, group),
        [image, text, tau(temperature)],
    )


def test_info_nce_of_some_rows_against_all_columns() -> None:
    image, text = embeddings(5, 8, 8)
    groups = torch.tensor([3, 1, 3, 2, 1])
    both = (groups[1:3], groups)
    agree(
        lambda i, t, s: info_nce(
            cosine_similarity(i[1:3], t), s, both, reverse=cosine_similarity(t[1:3], i), reduction="reference"
        ),
        lambda i, t, s: loop_info_nce(loop_cosine(i[1:3], t), loop_cosine(t[1:3], i), s, *both) / 5,
        [image, text, tau(0.05)],
    )


def test_info_nce_without_groups_has_one_hot_targets() -> None:
    image, text = embeddings(4, 8, 8)
    similarity = cosine_similarity(image, text)
    alone = info_nce(similarity, 0.05)
    torch.testing.assert_close(
        alone, loop_info_nce(similarity, similarity.T, tau(0.05), torch.arange(4), torch.arange(4))
    )
    assert not torch.isclose(alone, info_nce(similarity, 0.05, torch.tensor([0, 0, 1, 2])))


def test_reference_reduction_divides_by_the_batch_once_more() -> None:
    image, text = embeddings(4, 8, 8)
    similarity = cosine_similarity(image, text)
    torch.testing.assert_close(info_nce(similarity, 0.05, reduction="reference") * 4, info_nce(similarity, 0.05))


@pytest.mark.parametrize("temperature", [0.10, 0.45, 0.99])
def test_csa_is_the_equation(temperature: float) -> None:
    image, text, teacher_image, teacher_text = embeddings(5, 8, 8, 6, 7)
    image_targets = soft_targets(cosine_similarity(teacher_image, teacher_image), 0.1)
    text_targets = soft_targets(cosine_similarity(teacher_text, teacher_text), 0.1)

    def slow(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        similarity = loop_cosine(i, t)
        images, texts = loop_alignment(similarity, image_targets, s), loop_alignment(similarity.T, text_targets, s)
        return (images + texts) / 2

    agree(
        lambda i, t, s: csa_loss(cosine_similarity(i, t), image_targets, text_targets, s),
        slow,
        [image, text, tau(temperature)],
    )


def test_csa_and_usa_of_some_rows_against_all_columns() -> None:
    image, text, teacher_image, teacher_text = embeddings(5, 8, 8, 6, 7)
    image_targets = soft_targets(cosine_similarity(teacher_image[1:3], teacher_image), 0.1)
    text_targets = soft_targets(cosine_similarity(teacher_text[1:3], teacher_text), 0.1)

    def fast(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        cross = csa_loss(
            cosine_similarity(i[1:3], t), image_targets, text_targets, s, reverse=cosine_similarity(t[1:3], i)
        )
        among = cosine_similarity(i[1:3], i), cosine_similarity(t[1:3], t)
        return cross + usa_loss(among, [image_targets, text_targets], [s, 0.2])

    def slow(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        cross = loop_alignment(loop_cosine(i[1:3], t), image_targets, s)
        cross = cross + loop_alignment(loop_cosine(t[1:3], i), text_targets, s)
        images = loop_alignment(loop_cosine(i[1:3], i), image_targets, s)
        return (cross + images + loop_alignment(loop_cosine(t[1:3], t), text_targets, tau(0.2))) / 2

    agree(fast, slow, [image, text, tau(0.45)])


def test_usa_is_the_equation() -> None:
    image, text, teacher_image, teacher_text = embeddings(5, 8, 8, 6, 7)
    image_targets = soft_targets(cosine_similarity(teacher_image, teacher_image))
    text_targets = soft_targets(cosine_similarity(teacher_text, teacher_text))

    def slow(i: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        images, texts = loop_cosine(i, i), loop_cosine(t, t)
        return (loop_alignment(images, image_targets, a) + loop_alignment(texts, text_targets, b)) / 2

    agree(
        lambda i, t, a, b: usa_loss(
            [cosine_similarity(i, i), cosine_similarity(t, t)], [image_targets, text_targets], [a, b]
        ),
        slow,
        [image, text, tau(0.45), tau(0.10)],
    )


def test_soft_targets_are_the_equation() -> None:
    (teacher,) = embeddings(4, 6)
    similarity = cosine_similarity(teacher, teacher)
    expected = torch.stack([torch.stack(loop_softmax(row, 0.1)) for row in loop_rows(loop_cosine(teacher, teacher))])
    torch.testing.assert_close(soft_targets(similarity, 0.1), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_soft_targets_of_the_nearest_columns_only() -> None:
    teacher, others = embeddings(6, 4, 4)
    similarity = cosine_similarity(teacher[:3], others)
    targets = soft_targets(similarity, 0.1, top_k=2)
    for row, kept in zip(loop_rows(similarity), targets, strict=True):
        nearest = sorted(range(6), key=lambda j, row=row: -float(row[j]))[:2]
        expected = torch.zeros(6, dtype=torch.float64)
        expected[nearest] = torch.stack(loop_softmax([row[j] for j in nearest], tau(0.1)))
        torch.testing.assert_close(kept, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for enough in (6, 100):
        torch.testing.assert_close(soft_targets(similarity, 0.1, enough), soft_targets(similarity, 0.1))


def test_columns_as_near_as_the_last_kept_stay_whatever_their_order() -> None:
    similarity = torch.tensor([[0.5, 1.0, 0.5, 0.2, 0.5]], dtype=torch.float64)
    targets = soft_targets(similarity, 1.0, top_k=2)
    assert (targets > 0).tolist() == [[True, True, True, False, True]]
    assert targets.sum().item() == pytest.approx(1.0)
    order = torch.tensor([4, 3, 2, 1, 0])
    torch.testing.assert_close(soft_targets(similarity[:, order], 1.0, 2), targets[:, order], rtol=0, atol=0)


def test_mixes() -> None:
    images = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    texts = torch.tensor([[1.0, -0.3], [-0.3, 1.0]], dtype=torch.float64)
    each = mixed_targets(images, texts, 1.0, "each")
    torch.testing.assert_close(each[0], soft_targets(images))
    torch.testing.assert_close(each[1], soft_targets(texts))
    add, dot = mixed_targets(images, texts, 1.0, "add"), mixed_targets(images, texts, 1.0, "dot")
    torch.testing.assert_close(add[0], soft_targets(torch.tensor([[1.0, 0.1], [0.1, 1.0]], dtype=torch.float64)))
    torch.testing.assert_close(dot[0], soft_targets(torch.eye(2, dtype=torch.float64)))
    assert add[0] is add[1]
    assert dot[0] is dot[1]
    for mix in ("each", "add", "dot"):
        for nearest in mixed_targets(images, texts, 1.0, mix, top_k=1):
            torch.testing.assert_close(nearest, torch.eye(2, dtype=torch.float64))


def test_targets_of_zero_count_nothing() -> None:
    similarity = torch.tensor([[0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = soft_alignment(similarity, targets, 0.5)
    expected = math.log(1 + math.exp(-0.2 / 0.5))
    assert loss.item() == pytest.approx(expected, abs=TOLERANCE)
    assert torch.isfinite(torch.autograd.grad(loss, similarity)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_of_one_gives_zero_and_losses_keep_precision(dtype: torch.dtype) -> None:
    one = torch.ones(1, 4, dtype=dtype)
    similarity = cosine_similarity(one, one)
    targets = soft_targets(similarity)
    values = [
        info_nce(similarity, 0.05, torch.tensor([3])),
        csa_loss(similarity, targets, targets, 0.45),
        usa_loss([similarity] * 2, [targets] * 2, [0.45] * 2),
    ]
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert [value.dtype for value in values] == [wanted] * 3
    assert [value.item() for value in values] == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)


def test_autocast_does_not_lower_the_precision() -> None:
    image, text = (tensor.float() for tensor in embeddings(8, 16, 16))

    def losses() -> list[Tensor]:
        similarity = cosine_similarity(image, text)
        targets = soft_targets(similarity)
        return [info_nce(similarity, 0.05), soft_alignment(similarity, targets, 0.45)]

    plain = losses()
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses()
    assert [value.dtype for value in cast] == [torch.float32] * 2
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_the_warm_up_is_bounded_cross_entropy_both_ways() -> None:
    """½ [CE(Y ‖ Q) + CE(Q ‖ Y + 1e-7)] both ways (L2RM); the second part is 16.118 (1 − Q_ii)."""
    image, text = embeddings(7, 5, 5)

    def loop(image: Tensor, text: Tensor) -> Tensor:
        scores = loop_cosine(image, text)
        total = torch.zeros((), dtype=torch.float64)
        for matrix in (scores, scores.T):
            for i, row in enumerate(loop_rows(matrix)):
                probability = loop_softmax(row, 0.3)
                total = total - torch.log(probability[i])
                for j, q in enumerate(probability):
                    total = total - q * math.log((i == j) + 1e-7)
        return total / (2 * len(image))

    agree(lambda a, b: symmetric_cross_entropy(cosine_similarity(a, b), 0.3), loop, [image, text])
    far = symmetric_cross_entropy(torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), 0.05)
    torch.testing.assert_close(float(far), 40 - math.log(1e-7), rtol=1e-6, atol=0)


def test_the_warm_up_counts_all_of_a_group_as_its_own() -> None:
    scores, same = torch.zeros(3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    expected = math.log(3) - math.log(1e-7) * (1 / 3 + 1 / 3 + 2 / 3) / 3
    torch.testing.assert_close(float(symmetric_cross_entropy(scores, 1.0, same)), expected, rtol=1e-6, atol=0)


def test_the_symmetric_divergence_is_both_kl() -> None:
    image, text = embeddings(6, 4, 4)
    targets = soft_targets(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0.1)
    targets = targets.masked_fill(torch.eye(6, dtype=torch.bool), 0)
    allowed = torch.tensor([True, True, False, True, True, True])
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)

    def loop(image: Tensor, text: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, row in enumerate(loop_rows(loop_cosine(image, text))):
            kept = [j for j in range(6) if allowed[j]]
            clipped = [max(float(targets[i, j]), 1e-10) for j in kept]
            wanted = [p / sum(clipped) for p in clipped]
            for p, q in zip(wanted, loop_softmax([row[j] for j in kept], 0.4), strict=True):
                total = total + weights[i] * (p * (math.log(p) - torch.log(q)) + q * (torch.log(q) - math.log(p)))
        return total / 6

    masked = targets.masked_fill(~allowed, 0)
    for given in (masked, targets):
        agree(
            lambda a, b, given=given: symmetric_divergence(cosine_similarity(a, b), given, 0.4, weights, allowed),
            loop,
            [image, text],
        )


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 3, 3]], ids=["none", "shared"])
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_hinge_of_a_batch_is_the_equation(groups: list[int] | None, hardest: bool, reduction: Any) -> None:
    own = groups or list(range(5))

    def slow(similarity: Tensor) -> Tensor:
        total = torch.zeros((), dtype=similarity.dtype)
        for scores in (similarity, similarity.T):
            for i in range(5):
                others = [j for j in range(5) if own[j] != own[i]]
                excess = [torch.clamp(0.3 + scores[i, j] - scores[i, i], min=0) for j in others]
                total = total + (max(excess) if hardest else sum(excess))
        return total if reduction == "sum" else total / 5

    (scores,) = embeddings(5, 5)
    marked = None if groups is None else torch.tensor(groups)
    agree(lambda s: hinge(s, 0.3, hardest, reduction, marked), slow, [scores])


def test_of_equal_negatives_the_first_alone_is_the_hardest() -> None:
    scores = torch.tensor([[0.5, 0.6, 0.6], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    hinge(scores, 0.2).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[-1, 2, 1], [0, -1, 0], [0, 0, -1]]
