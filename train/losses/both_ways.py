"""InfoNCE of a whole batch both ways at once, from one matrix: no transpose, and one matrix kept for the backward pass.

With logits L, p_i = log Σ_j exp L_ij and q_j = log Σ_i exp L_ij, shares w and v of rows and columns as anchors, and T
the targets of both ways times these shares, the loss is ½ (w·p + v·q − ⟨T, L⟩), and its gradient with respect to L_ij
½ (w_i exp(L_ij − p_i) + v_j exp(L_ij − q_j) − T_ij). On a processor both are computed in blocks of rows that stay in
its cache: the time goes into reading and writing matrices.

Shapes: N rows and columns.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

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
        targets, (columns, rows) = _Targets(similarity, *sides), sides[4:]
        gradient = torch.empty_like(similarity, memory_format=torch.contiguous_format)
        blocks = _blocks(similarity, tau, gradient)
        over_columns, value = _LogSum(similarity), similarity.new_zeros(())
        # What the rows give of the gradient, and the sums over columns; what these and the targets give follows.
        for block in blocks:
            logits, own = block.logits(), block.gradient
            over_columns.add(_masked(logits, rows, 1, block.part, block.spare), block.spare)
            masked, shares = _masked(logits, columns, 0, block.part, own), targets.row_shares[block.part]
            largest = masked.amax(dim=1)
            total = torch.sub(masked, largest[:, None], out=own).exp_().sum(dim=1)
            value = value + shares.dot(largest + total.log())
            own.mul_((shares / total)[:, None])
        logarithms, slope = over_columns.value(), torch.zeros_like(value)
        value = value + targets.column_shares.dot(logarithms)
        for block in blocks:
            logits, own = block.logits(), block.gradient
            masked = _masked(logits, rows, 1, block.part, block.spare)
            own.addcmul_(torch.sub(masked, logarithms, out=block.spare).exp_(), targets.column_shares)
            wanted = targets.of(block.part, block.spare, block.same)
            own.sub_(wanted)
            value = value - wanted.flatten().dot(logits.flatten())
            slope = slope + own.flatten().dot(logits.flatten())
        ctx.save_for_backward(gradient, tau, slope)
        return value / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, tau, slope = ctx.saved_tensors
        scale = upstream / (2 * tau)
        return gradient * scale, -slope * scale, *[None] * 6


class _Block(NamedTuple):
    """Some rows of the matrices, with room for three: new memory at each step would cost more than the step."""

    similarity: Tensor
    tau: Tensor
    gradient: Tensor
    part: slice
    room: Tensor
    spare: Tensor
    same: Tensor

    def logits(self) -> Tensor:
        """Return the logits, which stay until the next block's are asked for."""
        return torch.div(self.similarity, self.tau, out=self.room)


def _blocks(similarity: Tensor, tau: Tensor, gradient: Tensor) -> list[_Block]:
    count = len(similarity)
    height = count if similarity.is_cuda else max(1, min(count, IN_CACHE // count))
    rooms = similarity.new_empty((3, height, count))
    parts = [slice(start, min(start + height, count)) for start in range(0, count, height)]
    sizes = [part.stop - part.start for part in parts]
    return [
        _Block(similarity[part], tau, gradient[part], part, *rooms[:, :size])
        for part, size in zip(parts, sizes, strict=True)
    ]


class _LogSum:
    """The logarithms of the columns' sums of exponentials, of rows as they come: (N,)."""

    def __init__(self, like: Tensor) -> None:
        self._largest = like.new_full((like.shape[1],), torch.finfo(like.dtype).min)
        self._sum = like.new_zeros(like.shape[1])

    def add(self, logits: Tensor, room: Tensor) -> None:
        """Take in rows; `room` is overwritten."""
        largest = torch.maximum(self._largest, logits.amax(dim=0))
        own = torch.sub(logits, largest, out=room).exp_().sum(dim=0)
        self._sum = self._sum * (self._largest - largest).exp_() + own
        self._largest = largest

    def value(self) -> Tensor:
        return self._largest + self._sum.log()


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
        # Comparing floats that fill a given place is many times faster than comparing integers.
        ordered = torch.cat([row_groups, column_groups]).sort().values
        self._groups = [torch.searchsorted(ordered, side).to(ones.dtype) for side in (row_groups, column_groups)]
        self._columns, self._rows = (ones if some is None else some.to(ones.dtype) for some in (columns, rows))
        self._of_rows = self.row_shares / _partners(row_groups, column_groups, columns)
        self._of_columns = self.column_shares / _partners(column_groups, row_groups, rows)

    def of(self, part: slice, room: Tensor, same: Tensor) -> Tensor:
        """Return those of some rows, (n, N), in `room`; `same` is overwritten."""
        sides = torch.stack([self._of_rows[part], self._rows[part]], dim=1)
        torch.eq(self._groups[0][part, None], self._groups[1][None, :], out=same)
        return torch.mm(sides, torch.stack([self._columns, self._of_columns]), out=room).mul_(same)


def _partners(groups: Tensor, others: Tensor, allowed: Tensor | None) -> Tensor:
    """Return how many of the others that are allowed are of each one's group, at least 1: (N,)."""
    ordered = (others if allowed is None else others[allowed]).sort().values
    return (torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)).clamp(min=1)


def _masked(logits: Tensor, some: Tensor | None, dim: int, part: slice, room: Tensor) -> Tensor:
    """Return logits without the columns (dim 0) or rows (dim 1, those at `part`) that are no candidates, in `room`."""
    if some is None:
        return logits
    absent = ~some if dim == 0 else ~some[part]
    return room.copy_(logits).masked_fill_(absent.unsqueeze(dim), float("-inf"))
