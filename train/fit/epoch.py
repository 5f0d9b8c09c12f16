"""The figures of a step and of an epoch: what is logged, drawn, written to tables and kept in the checkpoint."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stores.atomic import write_text
from stores.errors import DamagedRunError


@dataclass(frozen=True, kw_only=True)
class TrainingFigures:
    """What a stretch of a training gave."""

    loss: dict[str, float]
    """The terms before weighting, and the total."""
    temperatures: dict[str, float]
    """The learned temperatures at its end."""
    learning_rate: float
    """Of the step to come."""
    samples_per_second: float
    """Pairs per second over all processes, evaluation left out."""
    wait: float
    """Share of the training time in which the model waited for input, 0 to 1."""

    def by_name(self) -> dict[str, float]:
        """Return the figures under the names that they have in every curve and table, such as loss/CSA."""
        return {
            **{f"loss/{name}": value for name, value in self.loss.items()},
            **{f"temperature/{name}": value for name, value in self.temperatures.items()},
            **{name: getattr(self, name) for name in ("learning_rate", "samples_per_second", "wait")},
        }


@dataclass(frozen=True, kw_only=True)
class StepMetrics(TrainingFigures):
    """The latest figures within an epoch: losses of the latest step, speed since the last report."""

    step: int
    """Steps done in this epoch."""


@dataclass(frozen=True, kw_only=True)
class Epoch(TrainingFigures):
    """What one epoch gave; losses are means over it."""

    epoch: int
    """From 0."""
    validation_rsum: float
    terms: dict[str, float] = field(default_factory=dict)
    """What terms show of their state, such as how a split of the pairs fares."""
    sets: dict[str, float] = field(default_factory=dict)
    """Of a student of sets, how spread those of the validation split are."""

    def by_name(self) -> dict[str, float]:
        """Return the figures under the names that they have in every curve and table."""
        return {
            **super().by_name(),
            "validation/RSUM": self.validation_rsum,
            **{f"validation/{name}": value for name, value in self.sets.items()},
            **{f"terms/{name}": value for name, value in self.terms.items()},
        }


@dataclass
class EpochProgress:
    """What is done of the epoch under way; a checkpoint keeps it."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over the steps of the loss's parts and total."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of those in which the model waited for input."""


def epoch_rows(history: Sequence[Epoch]) -> list[dict[str, float]]:
    """Return one row of figures per epoch; epochs count from 1."""
    return [{"epoch": figures.epoch + 1, **figures.by_name()} for figures in history]


def write_epochs(path: Path, history: Sequence[Epoch]) -> None:
    """Write an epochs.csv: one row per epoch, a column for every figure that any epoch has."""
    rows = epoch_rows(history)
    text = io.StringIO()
    table = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row) or ["epoch"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_epochs(path: Path) -> list[dict[str, float]]:
    """Read an epochs.csv: every epoch's figures by name; what the file leaves empty is absent.

    Raises:
        DamagedRunError: it is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            rows = [{name: float(value) for name, value in row.items() if value != ""} for row in table]
        if (table.fieldnames or [""])[0] != "epoch" or any("epoch" not in row for row in rows):
            raise ValueError(path)
    except (OSError, ValueError, TypeError, csv.Error):
        raise DamagedRunError(path=path, expected="one row of numbers per epoch") from None
    return rows
