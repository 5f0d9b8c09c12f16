"""The temperatures that a student learns beside its weights, with the starts and bounds of CUSA's appendix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Taus(NamedTuple):
    """The student's temperatures, scalars: of InfoNCE, of CSA, and of USA among images and among texts."""

    contrast: Tensor
    cross: Tensor
    image: Tensor
    text: Tensor


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


class Temperatures(nn.Module):
    """The four temperatures with the starts and bounds of CUSA's appendix."""

    def __init__(self) -> None:
        super().__init__()
        self.contrast = Temperature(0.05, 0.01, 0.10)
        self.cross = Temperature(0.45, 0.10, 0.99)
        self.image = Temperature(0.45, 0.10, 1.00)
        self.text = Temperature(0.45, 0.10, 1.00)

    def forward(self) -> Taus:
        return Taus(self.contrast(), self.cross(), self.image(), self.text())

    def values(self) -> dict[str, float]:
        """Return the temperatures by name."""
        return {name: tau.item() for name, tau in self()._asdict().items()}

    def clamp_(self) -> None:
        """Bring all temperatures back within their bounds."""
        for temperature in self.children():
            if isinstance(temperature, Temperature):
                temperature.clamp_()
