"""InfoNCE of a whole batch both ways at once, from one matrix: no transpose, and one matrix kept for the backward pass.

With logits L, p_i = log Σ_j exp L_ij and q_j = log Σ_i exp L_ij, shares w and v of rows and columns as anchors, and T
the targets of both ways times these shares, the loss is ½ (w·p + v·q − ⟨T, L⟩), and its gradient with respect to L_ij
½ (w_i exp(L_ij − p_i) + v_j exp(L_ij − q_j) − T_ij). On a processor both are computed in blocks of rows that stay in
its cache: the time goes into reading and writing matrices.

Shapes: N rows and columns.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.losses.cross_entropy import precise

IN_CACHE: Final = 2**17
"""Elements of a block on a processor."""
Flags = tuple[Tensor | None, Tensor | None]
Groups = tuple[Tensor, Tensor]


def both_ways(similarity: Tensor, groups: Groups, tau: Tensor | float, weights: Flags, allowed: Flags) -> Tensor:
    """Return the mean of InfoNCE from rows to columns and from columns to rows, a scalar.

    Args:
        similarity: (N, N).
        groups: (N,) integers of rows and of columns: those of one group match, and share a target equally.
        tau: temperature.
        weights: (N,) shares of rows and of columns as anchors, of mean one; None: equal ones.
        allowed: (N,) bool, which columns and which rows are candidates; None: all.
    """
    similarity = precise(similarity)
    tau = torch.as_tensor(tau, dtype=similarity.dtype, device=similarity.device)
    with torch.autocast(similarity.device.type, enabled=False):
        value: Tensor = _BothWays.apply(similarity, tau, *groups, *weights, *allowed)  # type: ignore[no-untyped-call]
    return value


class _BothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, tau: Tensor, *sides: Any) -> Tensor:
        count = len(similarity)
        height = count if similarity.is_cuda else max(1, IN_CACHE // count)
        blocks = [_Block(similarity, tau, slice(start, start + height)) for start in range(0, count, height)]
        targets = _Targets(similarity, *sides)
        columns, rows = sides[4:]
        over_columns, value = similarity.new_full((count,), float("-inf")), similarity.new_zeros(())
        gradient = torch.empty_like(similarity, memory_format=torch.contiguous_format)
        # What the rows and the targets give of the gradient, and the sums over columns; what these give follows.
        for block in blocks:
            logits, own = block.logits(), gradient[block.part]
            over_columns = torch.logaddexp(over_columns, _masked(logits, rows, 1, block.part).logsumexp(dim=0))
            masked, shares = _masked(logits, columns, 0), targets.row_shares[block.part]
            largest = masked.amax(dim=1)
            total = torch.sub(masked, largest[:, None], out=own).exp_().sum(dim=1)
            wanted = targets.of(block.part)
            value = value + shares.dot(largest + total.log()) - wanted.flatten().dot(logits.flatten())
            own.mul_((shares / total)[:, None]).sub_(wanted)
        value, slope = value + targets.column_shares.dot(over_columns), torch.zeros_like(value)
        for block in blocks:
            logits, own = block.logits(), gradient[block.part]
            own.add_((_masked(logits, rows, 1, block.part) - over_columns).exp_().mul_(targets.column_shares))
            slope = slope + own.flatten().dot(logits.flatten())
        ctx.save_for_backward(gradient, tau, slope)
        return value / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, tau, slope = ctx.saved_tensors
        scale = upstream / (2 * tau)
        return gradient * scale, -slope * scale, *[None] * 6


class _Block:
    """Some rows of the logits, computed when they are asked for."""

    def __init__(self, similarity: Tensor, tau: Tensor, part: slice) -> None:
        self._similarity, self._tau, self.part = similarity, tau, part

    def logits(self) -> Tensor:
        return (self._similarity[self.part] / self._tau).contiguous()


class _Targets:
    """The targets of both ways, each anchor's shared among its candidates, times its share in the mean."""

    def __init__(
        self,
        like: Tensor,
        row_groups: Tensor,
        column_groups: Tensor,
        row_weights: Tensor | None,
        column_weights: Tensor | None,
        columns: Tensor | None,
        rows: Tensor | None,
    ) -> None:
        ones = like.new_ones(len(like))
        self.row_shares, self.column_shares = (
            (ones if some is None else some.to(ones.dtype)) / len(ones) for some in (row_weights, column_weights)
        )
        self._groups = row_groups, column_groups
        self._columns, self._rows = (ones if some is None else some.to(ones.dtype) for some in (columns, rows))
        self._of_rows = self.row_shares / _partners(row_groups, column_groups, columns)
        self._of_columns = self.column_shares / _partners(column_groups, row_groups, rows)

    def of(self, part: slice) -> Tensor:
        """Return those of some rows: (n, N)."""
        sides = torch.stack([self._of_rows[part], self._rows[part]], dim=1)
        same = self._groups[0][part, None] == self._groups[1][None, :]
        return (sides @ torch.stack([self._columns, self._of_columns])).mul_(same)


def _partners(groups: Tensor, others: Tensor, allowed: Tensor | None) -> Tensor:
    """Return how many of the others that are allowed are of each one's group, at least 1: (N,)."""
    ordered = (others if allowed is None else others[allowed]).sort().values
    return (torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)).clamp(min=1)


def _masked(logits: Tensor, some: Tensor | None, dim: int, part: slice = slice(None)) -> Tensor:
    """Return logits without the columns (dim 0) or rows (dim 1) that are no candidates; rows are those at `part`."""
    return logits if some is None else logits.masked_fill(~some[part].unsqueeze(dim), float("-inf"))
