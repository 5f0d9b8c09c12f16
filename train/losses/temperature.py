"""A temperature that is learned beside a student's weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """A learned temperature, kept in log space and within its bounds by `clamp_` after every optimiser step."""

    def __init__(self, start: float, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        return self.log.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the temperature back within its bounds."""
        self.log.clamp_(math.log(self.low), math.log(self.high))
