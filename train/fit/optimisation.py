"""The optimiser, and the learning rate as a function of the step (docs/methods.md §2)."""

from __future__ import annotations

import math

import torch
from torch import nn

from stores.parameters import Train


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, temperatures) do not decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """Return the rate of a step, counted from 0, of `steps`: a linear rise, then a cosine down to the final rate."""
    rise = max(1, round(settings.warmup * steps))
    highest, final = settings.learning_rate, settings.final_learning_rate
    if step < rise:
        return highest * (1 / rise + (1 - 1 / rise) * step / rise)
    progress = (step - rise) / max(1, steps - rise)
    return final + (highest - final) * (1 + math.cos(math.pi * progress)) / 2
