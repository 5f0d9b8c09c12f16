"""The curves of a run: validation RSUM, the parts of the loss, the temperatures."""

from __future__ import annotations

from typing import Final

import numpy as np

from train.page.charts import Chart, Series, line_chart
from train.page.run_files import Trained
from train.run_folder import PLAIN

COLOURS: Final = {
    "validation/RSUM": 0,
    "loss/InfoNCE": 0,
    "loss/CSA": 1,
    "loss/USA": 2,
    "temperature/contrast": 0,
    "temperature/cross": 1,
    "temperature/image": 2,
    "temperature/text": 3,
}
_LEARNED: Final = {"temperature/cross": "alpha", "temperature/image": "beta", "temperature/text": "beta"}
"""By temperature the weight without which it stays where it began."""


def curves(trainings: tuple[Trained, ...]) -> list[Chart]:
    """Return the charts of all trainings together; beside another, InfoNCE alone is dashed."""
    charts = [
        line_chart("Validation RSUM", _series(trainings, "validation/"), _told(trainings, "validation/RSUM")),
        line_chart("Parts of the loss", _series(trainings, "loss/"), _told(trainings, "loss/InfoNCE"), log=True),
        line_chart("Temperatures", _series(trainings, "temperature/"), _told(trainings, "temperature/contrast")),
    ]
    return [chart for chart in charts if chart is not None]


def _series(trainings: tuple[Trained, ...], prefix: str) -> list[Series]:
    series = []
    for trained in trainings:
        dashed = trained.title == PLAIN and len(trainings) > 1
        epochs = np.array([epoch["epoch"] for epoch in trained.epochs])
        for name, colour in COLOURS.items():
            if not name.startswith(prefix) or not _moves(trained, name):
                continue
            values = np.array([epoch.get(name, np.nan) for epoch in trained.epochs])
            label = f"{name.removeprefix(prefix)} ({trained.spoken})" if len(trainings) > 1 else name.partition("/")[2]
            series.append(Series(name=label, x=epochs, y=values, colour=colour, kind="dashed" if dashed else "line"))
    return series


def _moves(trained: Trained, name: str) -> bool:
    weight = _LEARNED.get(name)
    return weight is None or bool(getattr(trained.loss, weight))


def _told(trainings: tuple[Trained, ...], name: str) -> str:
    spans = [
        f"{trained.spoken}: {trained.epochs[0].get(name, np.nan):.3g} after epoch 1, "
        f"{trained.epochs[-1].get(name, np.nan):.3g} after epoch {len(trained.epochs)}"
        for trained in trainings
    ]
    return f"{name.replace('/', ' ')}. {'; '.join(spans)}."
