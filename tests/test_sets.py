"""Sets of vectors: their similarities against brute force, and their losses against loops from the equations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from refusals import refused
from test_terms import agree
from torch import Tensor

from models import scoring
from models.encoded import Encoded
from models.scoring import Assignment, Cosine, SetScorer, TopPairs
from stores.errors import StudentError
from train.losses.functional import global_discriminative, intra_set_divergence, mmd
from train.losses.sets import log_circular_variance, set_diversity

DIM = 6


def sets(seed: int, items: int, members: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(items, members, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    return Encoded(parts.mean(dim=1), parts=parts)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def brute(one: Tensor, other: Tensor, activation: str, top: bool) -> Tensor:
    """Every permutation, or the K nearest pairs, of two (K, D) sets."""
    count = len(one)
    cosines = [[cosine(v, t) for t in other] for v in one]
    cells = sorted((cosines[k][j].item(), k, j) for k in range(count) for j in range(count))[-count:]
    ways = [[cosines[k][j] for _, k, j in cells]] if top else []
    ways = ways or [[cosines[k][j] for k, j in enumerate(way)] for way in permutations(range(count))]
    best = max(ways, key=lambda way: sum(way).item())
    return sum((torch.exp(c) - 1 if activation == "expm1" else c) for c in best) / count  # type: ignore[return-value]


@pytest.mark.parametrize("members", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("activation", ["expm1", "none"])
@pytest.mark.parametrize("kind", [Assignment, TopPairs], ids=["assigned", "top"])
def test_similarities_are_those_of_brute_force(
    members: int, activation: Any, kind: type[SetScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.CELLS_AT_ONCE, "cpu", 5 * members**2)  # a row or two a block
    sizes = (2, 2) if members > 5 else (4, 5)
    first, second = sets(1, sizes[0], members), sets(2, sizes[1], members)
    scorer = kind(activation)
    found = scorer.matrix(first, second)
    loops = [[brute(v, t, activation, kind is TopPairs) for t in second.parts] for v in first.parts]  # type: ignore[union-attr]
    expected = torch.stack([torch.stack(row) for row in loops])
    leaves = [first.parts, second.parts]
    agree((found**2).sum(), (expected**2).sum(), leaves)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    count = min(sizes)
    torch.testing.assert_close(scorer.pairs(first.take(slice(count)), second.take(slice(count))), found.diagonal())
    shuffled = torch.randperm(sizes[1])
    torch.testing.assert_close(scorer.matrix(first, second.take(shuffled)), found[:, shuffled], rtol=1e-12, atol=1e-12)


def test_one_member_is_the_cosine() -> None:
    first, second = sets(1, 4, 1), sets(2, 5, 1)
    torch.testing.assert_close(Assignment("none").matrix(first, second), Cosine().matrix(first, second))


def test_top_pairs_are_no_less_than_the_assigned_and_sets_are_of_one_size() -> None:
    first, second = sets(1, 4, 4), sets(2, 5, 4)
    lead = TopPairs().matrix(first, second) - Assignment().matrix(first, second)
    assert lead.min() >= -1e-12
    assert lead.max() > 0.01
    with pytest.raises(StudentError, match="members of two sets"):
        Assignment().matrix(first, sets(3, 4, 3))
    with pytest.raises(StudentError, match="no parts"):
        Assignment().matrix(first, Encoded(second.vector))
    with refused(StudentError, problem="activation", found="softmax", expected="one of expm1, none"):
        Assignment("softmax")  # type: ignore[arg-type]
    assert first.parts is not None
    assert torch.equal(Assignment().matrix(first.parts, second), Assignment().matrix(first, second))


def loop_global(members: Tensor, whole: Tensor) -> Tensor:
    values = [torch.exp(1.5 * (cosine(v, whole[i]) - 0.3)) for i, one in enumerate(members) for v in one]
    return torch.stack(values).mean()


def loop_divergence(members: Tensor, form: str) -> Tensor:
    total, count = torch.zeros((), dtype=members.dtype), members.shape[1]
    for one in members:
        for k in range(count):
            for other in range(k + 1, count):
                x = 1.5 * (cosine(one[k], one[other]) - 0.1)
                total = total + (torch.exp(x) if form == "exp" else x.clamp(min=0)) * 2 / (count * (count - 1))
    return total / len(members)


def loop_diversity(members: Tensor) -> Tensor:
    total, count = torch.zeros((), dtype=members.dtype), members.shape[1]
    for one in members:
        squares = [cosine(one[k], one[j]) ** 2 for k in range(count) for j in range(count) if j != k]
        total = total + torch.stack(squares).sum().sqrt() / count**2
    return total / len(members)


def loop_mmd(x: Tensor, y: Tensor) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        values = [
            torch.exp(-0.5 * ((v - w) ** 2).sum().sqrt()) if v is not w else v.sum() * 0 + 1 for v in a for w in b
        ]
        return torch.stack(values).mean()

    one, other = list(x.reshape(-1, DIM)), list(y.reshape(-1, DIM))
    return mean(one, one) - 2 * mean(one, other) + mean(other, other)


@pytest.mark.parametrize(
    ("loss", "loop"),
    [
        (lambda x, y: global_discriminative(x, y[:, 0], 1.5, 0.3), lambda x, y: loop_global(x, y[:, 0])),
        (lambda x, y: intra_set_divergence(x, 1.5, 0.1), lambda x, y: loop_divergence(x, "exp")),
        (lambda x, y: intra_set_divergence(x, 1.5, 0.1, "hinge"), lambda x, y: loop_divergence(x, "hinge")),
        (lambda x, y: set_diversity(x), lambda x, y: loop_diversity(x)),
        (mmd, loop_mmd),
    ],
    ids=["global", "divergence", "divergence-hinge", "diversity", "mmd"],
)
def test_losses_are_the_equations(loss: Callable[..., Tensor], loop: Callable[..., Tensor]) -> None:
    x, y = (sets(seed, 5, 4).parts for seed in (3, 4))
    agree(loss(x, y), loop(x, y), [x, y])  # type: ignore[list-item]


def test_clouds_far_from_zero_keep_their_digits() -> None:
    x, y = (sets(seed, 5, 4).parts + 30 for seed in (3, 4))  # type: ignore[operator]
    torch.testing.assert_close(mmd(x.float(), y.float()).double(), mmd(x, y), rtol=1e-5, atol=0)


def test_a_single_member_does_not_diverge() -> None:
    parts = sets(3, 5, 1).parts
    assert parts is not None
    for loss in (intra_set_divergence(parts), set_diversity(parts)):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, parts)[0].any()


def test_circular_variance_tells_a_collapsed_set() -> None:
    torch.manual_seed(0)
    spread = torch.eye(4).expand(3, 4, 4)
    assert log_circular_variance(spread).item() == pytest.approx(torch.tensor(0.5).log().item())
    assert log_circular_variance(torch.ones(3, 4, 4) + 1e-3 * torch.randn(3, 4, 4)) < -10
