"""What a run's folder records of its trainings: parameters, figures on the test split, and every epoch's figures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stores import TrainParameters
from stores.errors import DamagedRunError
from stores.layout import SAFE_NAME
from stores.parameter_loading import recorded_parameters
from stores.parameters import Loss
from train.fit.epoch import read_epochs
from train.fit.run_folder import SOFT
from train.report.results import read_metrics

SPOKEN: Final = {"infonce": "InfoNCE", SOFT: "soft labels"}


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """One finished training of a run."""

    title: str
    """As metrics.json has it."""
    folder: Path
    loss: Loss
    figures: dict[str, Any]
    """On the test split."""
    epochs: list[dict[str, float]]
    """By the names of epochs.csv; what a file leaves empty is absent."""

    @property
    def spoken(self) -> str:
        """How a page calls it."""
        return SPOKEN.get(self.title, self.title)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run: one training, or the original loss alone and then soft labels."""

    folder: Path
    parameters: TrainParameters
    trainings: tuple[FinishedTraining, ...]


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        CusaError: the run has not finished, or its files are not those of a run.
    """
    metrics = read_metrics(folder)
    path = folder / "run.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedRunError(path=path, expected="the record of a run") from None
    parameters = recorded_parameters(TrainParameters, recorded, path)
    if not metrics or not all(re.fullmatch(SAFE_NAME, title) for title in metrics):
        raise DamagedRunError(path=folder / "metrics.json", found=list(metrics), expected="names of trainings' folders")
    places = [*(folder / title for title in list(metrics)[:-1]), folder]
    trainings = [
        _trained(place, title, figures, parameters.loss)
        for place, (title, figures) in zip(places, metrics.items(), strict=True)
    ]
    return FinishedRun(folder=folder, parameters=parameters, trainings=tuple(trainings))


def _trained(place: Path, title: str, figures: dict[str, Any], loss: Loss) -> FinishedTraining:
    loss = loss if title == SOFT else replace(loss, alpha=0.0, beta=0.0)
    epochs = read_epochs(place / "epochs.csv")
    best = figures.get("best_epoch")
    if not isinstance(best, int) or not 1 <= best <= len(epochs):
        expected = f"epoch {best!r}, the best in metrics.json"
        raise DamagedRunError("epochs", path=place / "epochs.csv", found=len(epochs), expected=expected)
    return FinishedTraining(title=title, folder=place, loss=loss, figures=figures, epochs=epochs)
