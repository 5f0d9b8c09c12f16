"""The partial transport against POT, against loops and a linear programme, in float64, and where it is degenerate."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from torch import Tensor

from train.losses.transport import EXACT, partial_transport, potentials, rematched_targets


def costs(rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


def extended(cost: Tensor, mass: float, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The marginals and costs with a dummy row and column of cost 0, their crossing and masked cells out of reach."""
    rows, columns = cost.shape
    whole = torch.zeros(rows + 1, columns + 1, dtype=torch.float64)
    whole[:-1, :-1] = cost if allowed is None else cost.masked_fill(~allowed, 1e6)
    whole[-1, -1] = 1e6
    rest = torch.tensor([1 - mass], dtype=torch.float64)
    marginals = [torch.cat([torch.full((n,), 1 / n, dtype=torch.float64), rest]) for n in (rows, columns)]
    return marginals[0], marginals[1], whole


def looped(cost: Tensor, mass: float, reg: float, allowed: Tensor) -> list[list[float]]:
    """a_i = p / (Σ_j E_ij b_j + β), b_j = q / (Σ_i E_ij a_i + α), α = (1−ρ)/Σ b, β = (1−ρ)/Σ a, cell by cell."""
    rows, columns = cost.shape
    kernel = [[float(torch.exp(-cost[i, j] / reg)) * bool(allowed[i, j]) for j in range(columns)] for i in range(rows)]
    a, b = [1.0] * rows, [1.0] * columns
    alpha = beta = 1.0
    for _ in range(3000):
        a = [1 / rows / (sum(kernel[i][j] * b[j] for j in range(columns)) + beta) for i in range(rows)]
        alpha = (1 - mass) / sum(b)
        b = [1 / columns / (sum(kernel[i][j] * a[i] for i in range(rows)) + alpha) for j in range(columns)]
        beta = (1 - mass) / sum(a)
    return [[a[i] * kernel[i][j] * b[j] for j in range(columns)] for i in range(rows)]


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(2, 2), (6, 6), (5, 9)], ids=["two", "square", "wide"])
def test_the_plan_is_that_of_the_extended_problem(shape: tuple[int, int], mass: float) -> None:
    cost, allowed = costs(*shape), ~torch.eye(*shape, dtype=torch.bool)
    plan = partial_transport(cost, mass, 0.07, allowed)
    theirs = ot.bregman.sinkhorn_log(*extended(cost, mass, allowed), 0.07, numItermax=100_000, stopThr=1e-13)
    torch.testing.assert_close(plan, theirs[:-1, :-1], rtol=0, atol=1e-8)
    loop = torch.tensor(looped(cost, mass, 0.07, allowed), dtype=torch.float64)
    torch.testing.assert_close(plan, loop, rtol=0, atol=1e-8)
    assert abs(float(plan.sum()) - mass) < 1e-12
    assert not plan[~allowed].any()
    assert float(plan.sum(dim=1).max()) <= 1 / shape[0] + 1e-9
    assert float(plan.sum(dim=0).max()) <= 1 / shape[1] + 1e-9


def test_without_entropy_it_is_the_linear_programme() -> None:
    for mass in (0.3, 0.8, 1.0):
        cost = costs(7, 7)
        exact = ot.emd(*extended(cost, mass))[:-1, :-1]
        found = partial_transport(cost, mass, 1e-3)
        assert abs(float((found * cost).sum()) - float((exact * cost).sum())) < 2e-3 * mass
        torch.testing.assert_close(float(found.sum()), mass)


@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@pytest.mark.parametrize(
    ("size", "mass", "reg"), [(2, 0.9, 1e-2), (5, 0.9, 2e-2), (8, 0.5, 1e-5), (4, 1.0, 1e-6), (12, 0.999, 1e-3)]
)
def test_much_mass_at_a_small_regularisation_is_exact(size: int, mass: float, reg: float, masked: bool) -> None:
    """Where Sinkhorn's rounds are too slow: the plan is of the form a·exp(−cost/reg)·b, and its marginals are right."""
    cost, allowed = costs(size, size), ~torch.eye(size, dtype=torch.bool) if masked else None
    if masked and size == 2:
        cost[0, 1] = cost[1, 0] = 0.4
    rows, columns = potentials(cost, mass, reg, allowed, EXACT)
    plan = partial_transport(cost, mass, reg, allowed)
    logits = rows[:, None] + columns - cost / reg
    torch.testing.assert_close(
        plan, (logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).exp(), rtol=1e-9, atol=1e-12
    )
    # What is left of a row goes to the dummy column, whose potential all rows share; the same of columns.
    for side, potential in ((1, rows), (0, columns)):
        left = 1 / size - plan.sum(dim=side)
        if mass < 1:
            torch.testing.assert_close(left, potential.softmax(dim=0) * (1 - mass), rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(left, torch.zeros(size, dtype=torch.float64), rtol=0, atol=1e-10)
    exact = ot.emd(*extended(cost, mass, allowed))[:-1, :-1]
    assert float((plan * cost).sum()) >= float((exact * cost).sum()) - 1e-9
    assert float((plan * cost).sum()) - float((exact * cost).sum()) <= 2 * reg * math.log(size * size)


def test_all_mass_is_plain_entropic_transport() -> None:
    cost, even = costs(5, 8), [torch.full((n,), 1 / n, dtype=torch.float64) for n in (5, 8)]
    theirs = ot.sinkhorn(*even, cost, 0.1, method="sinkhorn_log", numItermax=10_000, stopThr=1e-13)
    torch.testing.assert_close(partial_transport(cost, 1.0, 0.1), theirs, rtol=0, atol=1e-8)


def test_targets_are_the_plans_shares() -> None:
    similarity, allowed = costs(6, 9), torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    of_rows, of_columns = rematched_targets(similarity, 0.05, 0.4, allowed)
    plan = partial_transport(1 - similarity, 0.4, 0.05, allowed)
    torch.testing.assert_close(of_rows, plan / plan.sum(dim=1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(of_columns, (plan / plan.sum(dim=0)).T, rtol=0, atol=1e-5)
    single = rematched_targets(similarity.float(), 0.05, 0.4, allowed)[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), of_rows, rtol=0, atol=1e-5)


def test_hubs_get_less_than_a_plain_softmax_gives_them() -> None:
    similarity = costs(40, 40) * 0.3
    similarity[:, :3] += 0.3
    plain = (similarity / 0.07).softmax(dim=1)[:, :3].sum(dim=1).mean()
    shares = [float(rematched_targets(similarity, 0.07, mass)[0][:, :3].sum(dim=1).mean()) for mass in (0.1, 0.5)]
    assert shares[1] < shares[0] < float(plain)


def test_what_is_degenerate_stays_finite() -> None:
    equal = partial_transport(torch.full((4, 4), 3.0), 0.2, 0.07)
    torch.testing.assert_close(equal, torch.full((4, 4), 0.2 / 16))
    allowed = torch.ones(3, 3, dtype=torch.bool)
    allowed[0] = False
    plan = partial_transport(costs(3, 3), 0.1, 0.07, allowed)
    assert not plan[0].any()
    assert abs(float(plan.sum()) - 0.1) < 1e-12
    for far in (1e4, -1e4):
        shifted = partial_transport(costs(3, 3) + far, 0.1, 0.01)
        torch.testing.assert_close(shifted, partial_transport(costs(3, 3), 0.1, 0.01), rtol=0, atol=1e-8)
    for targets in rematched_targets(costs(3, 3), 0.07, 0.1, torch.zeros(3, 3, dtype=torch.bool)):
        assert not targets.any()


def test_a_row_that_may_go_nowhere_takes_no_target_from_others() -> None:
    similarity, allowed = costs(3, 3), torch.ones(3, 3, dtype=torch.bool)
    allowed[0] = False
    of_rows, of_columns = rematched_targets(similarity, 0.1, 1.0, allowed)
    assert not of_rows[0].any()
    torch.testing.assert_close(of_rows[1:].sum(dim=1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(of_columns.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert not of_columns[:, 0].any()
    with pytest.raises(ValueError, match="expected one row and one column"):
        partial_transport(torch.zeros(0, 3), 0.5, 0.1)


def test_what_cannot_be_transported_is_refused() -> None:
    cost, allowed = costs(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    allowed[0, 0] = True
    with pytest.raises(ValueError, match=r"No plan of mass 0\.9 .* the mask lets 0\.3.* through"):
        partial_transport(cost, 0.9, 0.07, allowed)
    for size in (2, 4):  # a row that may go nowhere, where all is to be transported
        allowed = torch.ones(size, size, dtype=torch.bool)
        allowed[0] = False
        with pytest.raises(ValueError, match="No plan of mass 1"):
            partial_transport(costs(size, size), 1.0, 0.1, allowed)
    for mass, reg in ((0.0, 0.1), (1.1, 0.1), (0.5, 0.0)):
        with pytest.raises(ValueError, match="expected 0 < mass"):
            partial_transport(cost, mass, reg)


def test_a_large_problem_is_solved_and_has_no_gradient() -> None:
    similarity = costs(1024, 1024).float().requires_grad_()
    mask = ~torch.eye(1024, dtype=torch.bool)
    plan = partial_transport(1 - similarity, 0.1, 0.07, mask)
    assert not plan.requires_grad
    assert abs(float(plan.sum()) - 0.1) < 1e-5
    assert not plan.diagonal().any()
