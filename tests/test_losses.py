"""The losses against loops written from the equations, in value and in every gradient, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from train.losses import (
    cosine_similarity,
    csa_loss,
    info_nce,
    mixed_targets,
    soft_alignment,
    soft_targets,
    usa_loss,
)

TOLERANCE = 1e-10


def loop_softmax(row: list[Tensor], tau: Tensor | float) -> list[Tensor]:
    """exp(s_j / τ) / Σ_k exp(s_k / τ), element by element."""
    terms = [torch.exp(value / tau) for value in row]
    return [term / sum(terms) for term in terms]


def loop_rows(matrix: Tensor) -> list[list[Tensor]]:
    return [[matrix[i, j] for j in range(matrix.shape[1])] for i in range(matrix.shape[0])]


def loop_info_nce(similarity: Tensor, tau: Tensor, groups: Tensor) -> Tensor:
    """Eq. 1–4 with targets shared among pairs of one group."""
    count = len(similarity)
    total = torch.zeros((), dtype=similarity.dtype)
    for matrix in (similarity, similarity.T):
        for i, row in enumerate(loop_rows(matrix)):
            members = [j for j in range(count) if groups[j] == groups[i]]
            probability = loop_softmax(row, tau)
            total = total - sum(torch.log(probability[j]) for j in members) / len(members)
    return total / (2 * count)


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
        lambda i, t, s: loop_info_nce(loop_cosine(i, t), s, group),
        [image, text, tau(temperature)],
    )


def test_info_nce_without_groups_has_one_hot_targets() -> None:
    image, text = embeddings(4, 8, 8)
    similarity = cosine_similarity(image, text)
    alone = info_nce(similarity, 0.05)
    torch.testing.assert_close(alone, loop_info_nce(similarity, tau(0.05), torch.arange(4)))
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


def test_usa_is_the_equation() -> None:
    image, text, teacher_image, teacher_text = embeddings(5, 8, 8, 6, 7)
    image_targets = soft_targets(cosine_similarity(teacher_image, teacher_image))
    text_targets = soft_targets(cosine_similarity(teacher_text, teacher_text))

    def slow(i: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        images, texts = loop_cosine(i, i), loop_cosine(t, t)
        return (loop_alignment(images, image_targets, a) + loop_alignment(texts, text_targets, b)) / 2

    agree(
        lambda i, t, a, b: usa_loss(
            cosine_similarity(i, i), cosine_similarity(t, t), image_targets, text_targets, a, b
        ),
        slow,
        [image, text, tau(0.45), tau(0.10)],
    )


def test_soft_targets_are_the_equation() -> None:
    (teacher,) = embeddings(4, 6)
    similarity = cosine_similarity(teacher, teacher)
    expected = torch.stack([torch.stack(loop_softmax(row, 0.1)) for row in loop_rows(loop_cosine(teacher, teacher))])
    torch.testing.assert_close(soft_targets(similarity, 0.1), expected, rtol=TOLERANCE, atol=TOLERANCE)


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
        usa_loss(similarity, similarity, targets, targets, 0.45, 0.45),
    ]
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert [value.dtype for value in values] == [wanted] * 3
    assert [value.item() for value in values] == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)


def test_autocast_does_not_lower_the_precision() -> None:
    image, text = (tensor.float() for tensor in embeddings(8, 16, 16))
    plain = info_nce(cosine_similarity(image, text), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(cosine_similarity(image, text), 0.05)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)
