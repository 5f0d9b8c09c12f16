"""The optimiser and its learning rate (docs/methods.md §2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from stores.parameters import Train


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (norms, biases, temperatures) do not decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int) -> LRScheduler:
    """Linear warm-up, then a cosine from the learning rate to the final one, by steps."""
    steps = settings.epochs * steps_per_epoch
    warmup = max(1, round(settings.warmup * steps))
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup), eta_min=settings.final_learning_rate)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def schedule_state(schedule: LRScheduler) -> dict[str, Any]:
    """Return a schedule's state without what JSON cannot hold (bound methods, which a new schedule has anyway)."""
    return _plain(schedule.state_dict())


def load_schedule(schedule: LRScheduler, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Set a schedule, and its optimiser's learning rates, to what `schedule_state` returned."""
    schedule.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in state.items() if isinstance(value, int | float | bool | list | None)}
    if "_schedulers" in kept:
        kept["_schedulers"] = [_plain(inner) for inner in state["_schedulers"]]
    return kept
