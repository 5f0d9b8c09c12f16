"""The curves of trainings as plots: which figures share a plot, and the lines in it; drawn as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PLOTS: Final = {
    "Validation RSUM": "validation/",
    "Parts of the loss": "loss/",
    "Temperatures": "temperature/",
    "Learning rate after the epoch": "learning_rate",
    "Pairs per second": "samples_per_second",
    "Wait for input, share of the time": "wait",
}
"""By title of the plot, what the names of its figures begin with."""
LEARNED: Final = ("Validation RSUM", "Parts of the loss", "Temperatures")
"""The plots of what was learned; the others tell how the training went."""


class TrainingCurves(NamedTuple):
    """The epochs of a training, to be drawn."""

    name: str
    epochs: Sequence[Mapping[str, float]]
    """By the names of epochs.csv; what is not known of an epoch is absent."""
    kind: str = "line"
    """line or dashed."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one name over x: (n,) each; what is not finite is left out."""

    name: str
    x: Array
    y: Array
    colour: int
    kind: str = "line"


class CurvePlot(NamedTuple):
    """Some curves over epochs in one coordinate system."""

    title: str
    series: list[Series]
    log: bool = False
    """Whether y is logarithmic, without what is not above zero."""


def curve_plots(trainings: Sequence[TrainingCurves], titles: Sequence[str] = tuple(PLOTS)) -> list[CurvePlot]:
    """Return the plots of all trainings: of two together, of more a plot each, but for their RSUM."""
    plots = []
    for title in titles:
        shares = len(trainings) <= 2 or title == "Validation RSUM"
        for group in [list(trainings)] if shares else [[training] for training in trainings]:
            whole_title = title if shares else f"{title}, {group[0].name}"
            plots.append(CurvePlot(whole_title, _series(group, PLOTS[title]), PLOTS[title] == "loss/"))
    return plots


def _series(trainings: Sequence[TrainingCurves], prefix: str) -> list[Series]:
    names = _names(trainings, prefix)
    series = []
    for number, (training, colour, name) in enumerate((t, c, n) for t in trainings for c, n in enumerate(names)):
        values = np.array([epoch.get(name, np.nan) for epoch in training.epochs])
        label = name.removeprefix(prefix) or training.name if prefix == name else name.removeprefix(prefix)
        if not np.isnan(values).all():
            epochs = np.array([epoch["epoch"] for epoch in training.epochs])
            series.append(Series(name=label, x=epochs, y=values, colour=colour, kind=training.kind))
    return series
