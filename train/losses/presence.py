"""What of a batch counts where items are absent: anchors, candidates, and the pairs of modalities that can be compared.

Shapes: M rows, N columns, the rows among them. `has_…` (M,) or (N,) bool says who has an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stores.errors import TrainingError
from stores.hardware import exact_dtype


class Cells(NamedTuple):
    """How many of the cells of two modalities, over the whole batch, hold two items that match, and two that do not."""

    matching: Tensor
    """() float64."""
    others: Tensor
    """() float64."""

    @property
    def countable(self) -> Tensor:
        """() bool: whether there are some of both; else the two modalities cannot be told apart in this batch."""
        return (self.matching > 0) & (self.others > 0)


def count_cells(
    first_groups: Tensor, second_groups: Tensor, has_first: Tensor | None, has_second: Tensor | None
) -> Cells:
    """Count the present cells of a batch: (N,) groups of the items of two modalities; None: all are there."""
    first = first_groups if has_first is None else first_groups[has_first]
    second = second_groups if has_second is None else second_groups[has_second]
    ordered = second.sort().values
    matching = torch.searchsorted(ordered, first, right=True) - torch.searchsorted(ordered, first)
    together = matching.to(exact_dtype(matching.device)).sum()
    return Cells(together, len(first) * len(second) - together)


def anchor_shares(
    groups: tuple[Tensor, Tensor],
    has_first: tuple[Tensor | None, Tensor | None],
    has_second: Tensor | None,
    certain: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return the shares of the rows that have an item of the first modality, and a match of the second: (M,).

    Args:
        groups: (M,) of the rows and (N,) of the columns.
        has_first: (M,) and (N,).
        has_second: (N,).
        certain: (M,) and (N,), how much each weighs; None: equally.
    """
    matched = groups[1] if has_second is None else groups[1][has_second]
    rows, columns = (
        torch.isin(side, matched) if has is None else torch.isin(side, matched) & has
        for side, has in zip(groups, has_first, strict=True)
    )
    return shares(rows, columns, certain)


def shares(rows: Tensor, columns: Tensor, certain: tuple[Tensor | None, Tensor | None] = (None, None)) -> Tensor:
    """Return weights of mean one over the batch, (M,), zero where a row does not count.

    Args:
        rows: (M,) bool, which of the rows count.
        columns: (N,) bool, the same of the whole batch.
        certain: (M,) and (N,), how much each weighs; None: equally.
    """
    heights = [
        side.to(exact_dtype(side.device)) if some is None else side * some
        for side, some in zip((rows, columns), certain, strict=True)
    ]
    total = heights[1].sum()
    return heights[0] * (len(columns) / torch.where(total > 0, total, torch.ones_like(total)))


def candidates(has: Tensor | None) -> Tensor | None:
    """Return which columns are candidates, (N,) bool; None: all. Where none has an item, all are let through."""
    return None if has is None else has | ~has.any()


def present_cells(has_first: Tensor | None, has_second: Tensor | None) -> Tensor | None:
    """Return which cells have both items, as (M, N) bool or what broadcasts to it; None: all."""
    if has_first is None or has_second is None:
        one = has_first[:, None] if has_first is not None else None
        return has_second[None, :] if has_second is not None else one
    return has_first[:, None] & has_second[None, :]


def weighted_mean(
    losses: Sequence[Tensor], counted: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Return Σ w L / Σ w over the losses that are counted; zero, with a graph, where none is. None: all weigh alike."""
    if not losses:
        raise TrainingError(
            "The loss compares two modalities at least, which the student must have, and for soft labels its teachers "
            "too; there are no two."
        )
    stacked = torch.stack(list(losses))
    # Not by a tensor made of the weights: copying it to a GPU would wait for all that the GPU has yet to do.
    each = [1.0] * len(losses) if weights is None else weights
    heights = torch.stack([flag.to(stacked.dtype) * weight for flag, weight in zip(counted, each, strict=True)])
    total = heights.sum()
    return (stacked * heights).sum() / torch.where(total > 0, total, torch.ones_like(total))
