"""Partial transport between the images and texts of wrong pairs, and the targets that it gives (L2RM, 2403.05105).

1. Of uniform marginals 1/M and 1/N only a part ρ is transported, where a mask allows it, at the least cost less λ times
   the entropy. A dummy row and column of cost 0 take the rest; their own crossing is impossible, so that the mass is ρ.
2. Sinkhorn's rounds run on potentials in logs: every few rounds these are absorbed into a new kernel, whose rounds in
   between are products of a matrix and a vector (Schmitzer, 1610.06519). No cost, however large, under- or overflows.
3. Much mass at a small λ takes them too long. Then λ falls by halves from where they are quick, and at each one damped
   Newton steps on the columns' potentials follow, of which the rows' are a function (Brauer et al., 1710.06635).
4. The targets of a row are its plan's shares. They follow from the potentials of the other side alone: a softmax of
   −cost/λ less what is due to hubs, items that are near to many.

Shapes: M rows, N columns. All is computed in float64, where the device has it, without gradient.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from stores.hardware import exact_dtype

FLOOR: Final = 1e-10
"""Cells of the plan below it count as that much (L2RM): a row of which little is transported has even targets."""
_LOG_LARGEST: Final = 30.0
"""Bound of the logarithm of a floor: far above one, targets are even already."""
EXACT: Final = 1e-12
"""How far the plan's marginals may be off, summed, for a plan that is asked for itself."""
_CLOSE: Final = 1e-6
"""The same for targets."""
_FEASIBLE: Final = 1e-8
"""How far they are off, at most, where there is a plan at all."""
_ROUNDS: Final = 300
"""Sinkhorn's, at most."""
_STEPS: Final = 60
"""Newton's at one λ, at most: what the mask makes impossible would never end."""
_DAMPING: Final = (1e-13, 1e-6, 1e6)
"""Of Newton's steps: the least, where it rises again, and where no step helps any more."""
_BETWEEN: Final = 10
"""Rounds between two absorptions."""
_LEAST: Final = 1e-300
"""What is divided by is no less: a column that nothing reaches stays finite."""
_LARGEST: Final = 1e12
"""Bound of a logarithm, where nothing is allowed at all."""


def partial_transport(cost: Tensor, mass: float, reg: float, allowed: Tensor | None = None) -> Tensor:
    """Return the plan P that minimises Σ cost·P − reg · entropy with uniform marginals at most and ΣP = mass: (M, N).

    The entropy is that of the plan and of what stays untransported, so that every row gives up a similar share.

    Args:
        cost: (M, N).
        mass: what is transported of 1, in (0, 1].
        reg: λ, above 0.
        allowed: (M, N) bool; the plan is zero elsewhere.

    Raises:
        ValueError: mass or reg is out of bounds, there are no costs, or no plan moves so much mass by the mask.
    """
    if not cost.numel():
        raise ValueError(f"The costs are {tuple(cost.shape)}, expected one row and one column at least.")
    rows, columns = potentials(cost, mass, reg, allowed, EXACT)
    plan = (rows[:, None] + columns[None, :] + _logits(cost, reg, allowed)).exp().nan_to_num(0.0)
    total = float(plan.sum())
    excess = max(float((plan.sum(dim=side) * plan.shape[1 - side]).max()) for side in (0, 1)) - 1
    if not abs(total - mass) < _FEASIBLE * max(mass, 1e-3) or excess > _FEASIBLE:
        what = f"No plan of mass {mass:g} was found at reg {reg:g}"
        if allowed is not None and not allowed.all():
            what += f": the mask lets {total / max(1.0, 1 + excess):.4g} through"
        raise ValueError(f"{what}. Lower the mass, raise reg, or allow more cells.")
    return (plan * (mass / total)).to(_dtype(cost))


def rematched_targets(
    similarity: Tensor, reg: float, mass: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the soft targets of rows over columns, (M, N), and of columns over rows, (N, M), of cost 1 − similarity.

    They are the plan's shares of each row and of each column; zero throughout where nothing is allowed.
    """
    rows, columns = potentials(1 - similarity, mass, reg, allowed)
    transposed = None if allowed is None else allowed.T
    both = (similarity, columns, allowed), (similarity.T, rows, transposed)
    of_rows, of_columns = (targets(1 - scores, potential, reg, mask) for scores, potential, mask in both)
    return of_rows, of_columns


def targets(cost: Tensor, potential: Tensor, reg: float, allowed: Tensor | None = None) -> Tensor:
    """Return softmax_j(−cost_ij/reg + potential_j), (M, N), by the potentials (N,) of the columns."""
    shares = torch.softmax(_logits(cost, reg, allowed) + potential, dim=1)
    return shares.nan_to_num(0.0).to(_dtype(cost))


@torch.no_grad()
def share_floors(cost: Tensor, rows: Tensor, columns: Tensor, reg: float, allowed: Tensor | None = None) -> Tensor:
    """Return to which share of its row a cell of the plan of `FLOOR` amounts, (M, 1), by both sides' potentials."""
    logs = rows + torch.logsumexp(_logits(cost, reg, allowed) + columns, dim=1)
    return (math.log(FLOOR) - logs).clamp(max=_LOG_LARGEST).exp()[:, None]


@torch.no_grad()
def potentials(
    cost: Tensor,
    mass: float,
    reg: float,
    allowed: Tensor | None = None,
    tolerance: float = _CLOSE,
) -> tuple[Tensor, Tensor]:
    """Return log a (M,) and log b (N,), of `exact_dtype`, of the plan a_i exp(−cost_ij/reg) b_j.

    Args:
        cost: (M, N).
        mass: as in `partial_transport`.
        reg: likewise.
        allowed: likewise.
        tolerance: how far the plan's marginals may be off, summed.

    Raises:
        ValueError: mass or reg is out of bounds.
    """
    if not 0 < mass <= 1 or not reg > 0:
        raise ValueError(f"mass is {mass:g} and reg {reg:g}, expected 0 < mass ≤ 1 and reg > 0.")
    count, others = cost.shape
    logits = _logits(cost, reg, allowed)
    if not torch.isfinite(logits).any():
        return logits.new_zeros(count), logits.new_zeros(others)
    problem = _Problem(logits, mass)
    rows, columns = problem.start()
    for _ in range(_ROUNDS // _BETWEEN):
        rows, columns, error = problem.rounds(rows, columns)
        if error < tolerance:
            return rows[:count], columns[:others]
    rows, columns = _annealed(logits, mass, tolerance)
    return rows[:count], columns[:others]


def _annealed(logits: Tensor, mass: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return potentials (M + 1,) and (N + 1,), or (M,) and (N,) where all mass is transported, as λ falls by halves."""
    finite = logits[torch.isfinite(logits)]
    halvings = max(0, math.ceil(math.log2(max(1.0, float(finite.max() - finite.min())))) - 2)
    columns = _Problem(logits / 2**halvings, mass).start()[1]
    for power in range(halvings, -1, -1):
        problem = _Problem(logits / 2**power, mass)
        rows, columns = problem.newton(columns, tolerance)
        columns = columns if power == 0 else 2 * columns
    return rows, columns


class _Problem:
    """The problem with its dummy row and column, last, in logs; without them where all mass is transported."""

    def __init__(self, logits: Tensor, mass: float) -> None:
        self._inner, self._mass, partial = logits, mass, mass < 1
        self._logits = functional.pad(logits, (0, int(partial), 0, int(partial)))
        if partial:
            self._logits[-1, -1] = float("-inf")
        rest = logits.new_tensor([1 - mass] * partial)
        self._of_rows, self._of_columns = (
            torch.cat([logits.new_full((count,), 1 / count), rest]) for count in logits.shape
        )

    def start(self) -> tuple[Tensor, Tensor]:
        """Return potentials at which the mass is right, though its spread is not: near the solution for little mass."""
        count = self._inner.numel()
        level = (math.log(self._mass * count) - torch.logsumexp(self._inner.flatten(), dim=0)).clamp(max=_LARGEST) / 2
        potentials = [self._of_rows.log() + level, self._of_columns.log() + level]
        for potential in potentials if self._mass < 1 else ():
            potential[-1] -= 2 * level
        return potentials[0], potentials[1]

    def rounds(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the potentials some rounds on, and by how much the rows' marginals are off."""
        kernel = (rows[:, None] + columns[None, :] + self._logits).exp_()
        transposed = kernel.T.contiguous()
        scaled_rows, scaled_columns = torch.ones_like(rows), torch.ones_like(columns)
        least = max(_LEAST, torch.finfo(kernel.dtype).tiny)
        for _ in range(_BETWEEN):
            scaled_rows = self._of_rows / torch.mv(kernel, scaled_columns).clamp_(min=least)
            scaled_columns = self._of_columns / torch.mv(transposed, scaled_rows).clamp_(min=least)
        error = (scaled_rows * torch.mv(kernel, scaled_columns) - self._of_rows).abs().sum()
        return rows + scaled_rows.log(), columns + scaled_columns.log(), float(error)

    def newton(self, columns: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Return the potentials, those of the columns minimising Σ p log Σ exp(logits + columns) − q · columns.

        The steps are damped as Levenberg and Marquardt do it.
        """
        least, raised, most = _DAMPING
        damping = raised
        value, error, normaliser, plan = self._at(columns)
        for _ in range(_STEPS):
            if float(error.abs().sum()) < tolerance or damping > most:
                break
            reached = plan.sum(dim=0)
            curvature = torch.diag(reached + damping * (reached + self._of_columns))
            curvature -= (plan / self._of_rows[:, None]).T @ plan
            tried = columns + torch.linalg.solve(curvature, error)
            found = self._at(tried)
            if found[0] < value or found[1].abs().sum() < error.abs().sum():
                columns, (value, error, normaliser, plan) = tried, found
                damping = max(least, damping / 10)
            else:
                damping = max(raised, damping * 10)
        # Of a row that may go nowhere a number all the same: its plan is zero by the mask.
        return self._of_rows.log() - normaliser.clamp(min=-_LARGEST), columns

    def _at(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return Newton's objective, what the columns' marginals lack, the rows' log Σ exp, and the plan."""
        logits = self._logits + columns
        normaliser = torch.logsumexp(logits, dim=1)
        plan = self._of_rows[:, None] * (logits - normaliser[:, None]).exp().nan_to_num(0.0)
        reached = normaliser.clamp(min=-_LARGEST)  # of a row that may go nowhere
        value = self._of_rows @ reached - self._of_columns @ columns
        return value, self._of_columns - plan.sum(dim=0), normaliser, plan


def _logits(cost: Tensor, reg: float, allowed: Tensor | None) -> Tensor:
    logits = cost.detach().to(exact_dtype(cost.device)) / -reg
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def _dtype(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
