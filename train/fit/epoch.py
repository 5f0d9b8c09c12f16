"""The figures of one epoch, as they are logged, drawn and kept in the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave."""

    epoch: int
    """From 0."""
    loss: dict[str, float]
    """Means over the epoch: the parts before weighting, and the total."""
    temperatures: dict[str, float]
    """The four learned temperatures after the epoch."""
    learning_rate: float
    """Of the epoch's last step."""
    validation_rsum: float
    samples_per_second: float
    """Pairs a second over all processes, evaluation left out."""
    wait: float
    """Share of the training time in which the model waited for input, 0 to 1."""
