"""Losses of embedding sets (MaxMatch, arXiv 2506.21538; its base, DivE, CVPR 2023; PVSE, CVPR 2019).

Shapes: n items with K members each, D embedding. A batch's loss is the sum over its modalities. As everywhere, values
are means over rows in float32, or float64 when given that, and `weights` (n,) are the rows' shares in the mean.

MaxMatch's code and text were not in reach. What its losses do is known; the forms follow re-implementations of others,
and scales and margins are theirs or ours: settings, all of them (docs/methods.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.scoring import unit
from train.losses.cross_entropy import precise, row_mean

Form = Literal["exp", "hinge"]


def global_discriminative(
    members: Tensor, whole: Tensor, scale: float = 1.0, margin: float = 0.5, weights: Tensor | None = None
) -> Tensor:
    """Return mean_i mean_k exp(s · (cos(v_ik, φ_i) − δ)): the members of a set move away from its global vector.

    Args:
        members: (n, K, D) v.
        whole: (n, D) φ.
        scale: s.
        margin: δ. Under the exponential it only rescales the loss, by e^(−sδ).
        weights: (n,).
    """
    cosines = torch.linalg.vecdot(unit(members), unit(whole)[:, None])
    return row_mean((scale * (cosines - margin)).exp().mean(dim=1), weights)


def intra_set_divergence(
    members: Tensor, scale: float = 1.0, margin: float = 0.5, form: Form = "exp", weights: Tensor | None = None
) -> Tensor:
    """Return mean_i of the mean over pairs k < l of f(cos(v_ik, v_il) − δ): the members of a set move apart.

    Args:
        members: (n, K, D) v. Of a single member the loss is zero.
        scale: s.
        margin: δ.
        form: f(x) is e^(sx), which never ends, or with "hinge" s · [x]₊, which ends at the margin.
        weights: (n,).
    """
    rows, columns = torch.triu_indices(members.shape[1], members.shape[1], offset=1, device=members.device)
    if not len(rows):
        return precise(members).sum() * 0
    vectors = unit(members)
    excess = scale * (torch.linalg.vecdot(vectors[:, rows], vectors[:, columns]) - margin)
    values = excess.exp() if form == "exp" else excess.clamp(min=0)
    return row_mean(values.mean(dim=1), weights)


def set_diversity(residuals: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return mean_i ‖G_i − diag G_i‖_F / K², G_i the cosines of the (n, K, D) residuals with each other (PVSE)."""
    vectors, count = unit(residuals), residuals.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=residuals.device)
    return row_mean(torch.linalg.vector_norm((vectors @ vectors.mT)[:, others], dim=1) / count**2, weights)


def mmd(
    first: Tensor,
    second: Tensor,
    gamma: float = 0.5,
    columns: tuple[Tensor, Tensor] | None = None,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None),
) -> Tensor:
    """Return the maximum mean discrepancy of two clouds: mean k(x, x) − 2 mean k(x, y) + mean k(y, y) (DivE).

    The kernel is k(x, y) = exp(−γ ‖x − y‖); the distance is not squared.

    Args:
        first: (…, D) x, all leading axes taken together.
        second: (…, D) y.
        gamma: γ.
        columns: x and y of the whole batch, where the two are some rows of it: the mean over equal shares of the batch
            is then the value of the whole.
        weights: of x and y, and of the columns, by vector and of mean one over the batch.
    """
    rows = [precise(side).flatten(0, -2) for side in (first, second)]
    whole = rows if columns is None else [precise(side).flatten(0, -2) for side in columns]
    # Distances stay what they are, and what lies far from zero keeps its digits.
    centre = whole[0].detach().mean(dim=0)
    rows, whole = ([side - centre for side in sides] for sides in (rows, whole))

    def mean(row: int, column: int) -> Tensor:
        kernel, shares = (-gamma * _distances(rows[row], whole[column])).exp(), weights[2 + column]
        values = kernel if shares is None else kernel * shares.to(kernel.dtype)
        return row_mean(values.mean(dim=1), weights[row])

    return mean(0, 0) - mean(0, 1) - mean(1, 0) + mean(1, 1)


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the distances of (m, D) rows and (n, D) columns, (m, n), by a matrix product.

    That is nearly five times as fast as by differences, and puts a vector 10⁻³ from itself: what is within rounding is
    zero, with gradient zero.
    """
    lengths = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
    squares = lengths - 2 * (rows @ columns.T)
    equal = squares <= 8 * torch.finfo(squares.dtype).eps * lengths
    return squares.masked_fill(equal, 1).sqrt().masked_fill(equal, 0)


def log_circular_variance(members: Tensor) -> Tensor:
    """Return mean_i log(1 − ‖mean_k v_ik‖) of (n, K, D) members: the lower, the nearer a set is to one vector."""
    spread = 1 - torch.linalg.vector_norm(unit(members).mean(dim=1), dim=1)
    logs: Tensor = spread.clamp(min=torch.finfo(spread.dtype).eps).log()
    return logs.mean()
