"""What a run's folder says of its trainings: parameters, figures on the test split, and every epoch's figures."""

from __future__ import annotations

import csv
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
from train.fit.run_folder import SOFT
from train.report.results import read_metrics

SPOKEN: Final = {"infonce": "InfoNCE", SOFT: "soft labels"}


@dataclass(frozen=True, kw_only=True)
class Trained:
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
class Run:
    """A finished run: one training, or the original loss alone and then soft labels."""

    folder: Path
    parameters: TrainParameters
    trainings: tuple[Trained, ...]


def read_run(folder: Path) -> Run:
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
    return Run(folder=folder, parameters=parameters, trainings=tuple(trainings))


def _trained(place: Path, title: str, figures: dict[str, Any], loss: Loss) -> Trained:
    loss = loss if title == SOFT else replace(loss, alpha=0.0, beta=0.0)
    epochs = read_epochs(place / "epochs.csv")
    best = figures.get("best_epoch")
    if not isinstance(best, int) or not 1 <= best <= len(epochs):
        expected = f"epoch {best!r}, the best in metrics.json"
        raise DamagedRunError("epochs", path=place / "epochs.csv", found=len(epochs), expected=expected)
    return Trained(title=title, folder=place, loss=loss, figures=figures, epochs=epochs)


def read_epochs(path: Path) -> list[dict[str, float]]:
    """Read an epochs.csv: every epoch's figures by name; what the file leaves empty is absent.

    Raises:
        DamagedRunError: it is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
        if any("epoch" not in row for row in rows):
            raise ValueError(path)
    except (OSError, ValueError, TypeError, csv.Error):
        raise DamagedRunError(path=path, expected="one row of numbers per epoch") from None
    return rows
