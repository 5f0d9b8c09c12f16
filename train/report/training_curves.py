"""The curves of trainings as plots: which figures share a plot, and the lines in it; drawn as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray

from stores.atomic import atomic_path
from stores.ownership import SOFTWARE
from train.fit.epoch import Epoch, epoch_rows

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Array = NDArray[Any]
RSUM: Final = "Validation RSUM"
PLOTS: Final = {
    RSUM: "validation/",
    "Parts of the loss": "loss/",
    "Temperatures": "temperature/",
    "Learning rate after the epoch": "learning_rate",
    "Pairs per second": "samples_per_second",
    "Wait for input, share of the time": "wait",
}
"""By title of the plot, what the names of its figures begin with."""
LEARNED: Final = (RSUM, "Parts of the loss", "Temperatures")
"""The plots of what was learned; the others tell how the training went."""

STYLES: Final = {"line": "-", "dashed": "--"}


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


def curve_plots(trainings: Sequence[TrainingCurves], titles: Collection[str]) -> list[CurvePlot]:
    """Return the plots of these titles: of two trainings together, of more a plot each, but for their RSUM."""
    plots = [CurvePlot(RSUM, _series(trainings, PLOTS[RSUM]))] if RSUM in titles else []
    together = len(trainings) <= 2
    for some in [trainings] if together else [[one] for one in trainings]:
        whose = "" if together else f", {some[0].name}"
        for title in titles:
            if title != RSUM:
                plots.append(CurvePlot(f"{title}{whose}", _series(some, PLOTS[title]), PLOTS[title] == "loss/"))
    return plots


def _series(trainings: Sequence[TrainingCurves], prefix: str) -> list[Series]:
    series = []
    for number, training in enumerate(trainings):
        epochs = np.array([epoch["epoch"] for epoch in training.epochs])
        for place, name in enumerate(_names(trainings, prefix)):
            values = np.array([epoch.get(name, np.nan) for epoch in training.epochs])
            if np.isnan(values).all():
                continue
            part = name.removeprefix(prefix)
            label = f"{part} ({training.name})" if part and len(trainings) > 1 else part or training.name
            colour = place if len(trainings) <= 2 else number
            series.append(Series(name=label, x=epochs, y=values, colour=colour, kind=training.kind))
    return series


def _names(trainings: Sequence[TrainingCurves], prefix: str) -> list[str]:
    """Return the figures of a kind that any training has, in the order of the one with the most terms."""
    longest = sorted(trainings, key=lambda training: -len(training.epochs[0]))
    found = dict.fromkeys(name for training in longest for epoch in training.epochs for name in epoch)
    return [name for name in found if name.startswith(prefix) and name != "loss/total"]


def draw_curves(histories: dict[str, list[Epoch]], folder: Path) -> None:
    """Draw what was learned (RSUM, losses, temperatures) and how it went (rate, speed, wait) to `folder`/curves.png."""
    rows = [(title, epoch_rows(history)) for title, history in histories.items()]
    trainings = [TrainingCurves(*row, "dashed" if row in rows[:-1] else "line") for row in rows]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 6.6), height_ratios=(3, 2))
    # Margins, and places of titles, that are searched for instead cost two thirds of the time.
    figure.subplots_adjust(left=0.055, right=0.99, top=0.95, bottom=0.07, wspace=0.2, hspace=0.35)
    for axis, plot in zip(axes.flat, curve_plots(trainings, PLOTS), strict=True):
        for one in plot.series:
            axis.plot(one.x, one.y, STYLES[one.kind], marker=".", color=f"C{one.colour}", label=one.name)
        axis.set(xlabel="epoch", yscale="log" if plot.log else "linear")
        axis.set_title(plot.title, y=1.0)
        if plot.title not in LEARNED:
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if plot.series:
            axis.legend(fontsize=8)
    save_drawing(figure, folder / "curves.png")


def save_drawing(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG that says who drew it, and close it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata=SOFTWARE)
    pyplot.close(figure)
