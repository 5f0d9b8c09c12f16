"""A transport's cost that is learned from pairs held to be right (the idea of L2RM, 2403.05105).

The released code learns a linear layer over the positions of a shuffled batch, from right pairs alone: its least loss
is cost 0 everywhere. Here the cost is a monotone map of each score, and the other cells of right pairs' rows count as
wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedCost(nn.Module):
    """cost = [1 − scale · score − shift]₊, at first 1 − score."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, scores: Tensor) -> Tensor:
        """Return the costs of scores of any shape."""
        return (1 - self.scale.clamp(min=0) * scores - self.shift).clamp(min=0)

    def loss(self, scores: Tensor, own: Tensor, wrong: Tensor, weights: Tensor) -> Tensor:
        """Return how far right cells are from cost 0 and the others of their rows from 1, without gradient of scores.

        Args:
            scores: (M, N).
            own: (M,) integers, each row's right column.
            wrong: (M, N) bool, the cells that count as wrong.
            weights: (M,) of the rows, zero for those that are not held to be right.
        """
        costs = self(scores.detach())
        others = ((1 - costs).clamp(min=0) * wrong).sum(dim=1) / wrong.sum(dim=1).clamp(min=1)
        each: Tensor = (costs.gather(1, own[:, None])[:, 0] + others) * weights
        return each.mean()
