"""A mean over rows, each compared with all columns, block by block of rows: exact gradients in linear memory.

Autograd keeps the rows × columns matrices of a loss for the backward pass: memory quadratic in the batch. Here

1. the forward pass takes the rows in blocks, each against all columns, and computes a block's values *and* gradients
   before it turns to the next, so that one block's matrices exist at a time;
2. it keeps the gradients, summed over the blocks and no larger than the inputs;
3. the backward pass scales them.

The gradients are those of the same code on all rows at once, but for rounding, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS: Final = 2**22
"""A larger rows × columns matrix is computed in blocks of rows of at most so many elements."""

Inputs = Sequence[Tensor]
Block = Callable[[Inputs, Inputs, Inputs], Sequence[Tensor]]


def tiled_mean(block: Block, rows: Inputs, columns: Inputs, shared: Inputs, height: int) -> tuple[Tensor, ...]:
    """Return the means over all rows of `block`'s values; only the first can be differentiated, and only once.

    Args:
        block: (a block of the rows, all columns, shared) to scalars that are means over these rows. It must not depend
            on any other tensor that wants a gradient.
        rows: tensors of one length, which are cut into blocks.
        columns: tensors that every block sees whole.
        shared: further tensors, such as temperatures.
        height: rows of a block; the last may have fewer.
    """
    inputs = [*rows, *columns, *shared]
    if not torch.is_grad_enabled():
        inputs = [_leaf(tensor, False) for tensor in inputs]
    values: tuple[Tensor, ...] = _TiledMean.apply(block, height, len(rows), len(columns), *inputs)  # type: ignore[no-untyped-call]
    return values


class _TiledMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, block: Block, height: int, of_rows: int, of_columns: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        wanted: tuple[bool, ...] = ctx.needs_input_grad[4:]
        rows, whole = inputs[:of_rows], [_leaf(*pair) for pair in zip(inputs[of_rows:], wanted[of_rows:], strict=True)]
        count = len(rows[0])
        gradients = _Gradients(inputs, of_rows)
        sums: list[Tensor] = []
        for start in range(0, count, height):
            part = slice(start, min(start + height, count))
            cut = [tensor[part] for tensor in rows]
            leaves = [_leaf(*pair) for pair in zip(cut, wanted[:of_rows], strict=True)] + whole
            with torch.enable_grad():
                values = block(leaves[:of_rows], whole[:of_columns], whole[of_columns:])
                shares = [value * ((part.stop - part.start) / count) for value in values]
            if any(wanted):
                gradients.add(part, shares[0], leaves)
            sums = [share.detach() + (sums[k] if sums else 0) for k, share in enumerate(shares)]
        ctx.save_for_backward(*gradients.sums)
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if gradient is None else gradient * upstream for gradient in ctx.saved_tensors)
        return None, None, None, None, *scaled


class _Gradients:
    """The gradients of the inputs, summed over the blocks; None where there is none.

    A tensor that is given twice, as rows and as columns, has one sum, at its last place.
    """

    def __init__(self, inputs: Inputs, of_rows: int) -> None:
        self._inputs, self._of_rows = inputs, of_rows
        last = {id(tensor): k for k, tensor in enumerate(inputs)}
        self._places = [last[id(tensor)] for tensor in inputs]
        self.sums: list[Tensor | None] = [None] * len(inputs)

    def add(self, part: slice, value: Tensor, leaves: Inputs) -> None:
        """Add the gradients of `value`, which was computed from `leaves`, those of the rows at `part`."""
        wanted = {k: leaf for k, leaf in enumerate(leaves) if leaf.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        for k, gradient in zip(wanted, found, strict=True):
            whole, total = self._inputs[k], self.sums[self._places[k]]
            if gradient is None:
                continue
            if total is None:
                total = self.sums[self._places[k]] = torch.zeros_like(whole, memory_format=torch.contiguous_format)
            (total[part] if k < self._of_rows else total).add_(gradient)


def _leaf(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.detach().requires_grad_(wanted)
