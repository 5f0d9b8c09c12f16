"""The curves of a finished run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib

from stores.atomic import atomic_path
from stores.ownership import SOFTWARE
from train.fit.epoch import Epoch, epoch_rows
from train.report.training_curves import LEARNED, PLOTS, TrainingCurves, curve_plots

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

STYLES: Final = {"line": "-", "dashed": "--"}


def draw_curves(histories: dict[str, list[Epoch]], folder: Path) -> None:
    """Draw what was learned (RSUM, losses, temperatures) and how it went (rate, speed, wait) to `folder`/curves.png."""
    rows = [(title, epoch_rows(history)) for title, history in histories.items()]
    trainings = [TrainingCurves(*row, "dashed" if row in rows[:-1] else "line") for row in rows]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 6.6), layout="constrained", height_ratios=(3, 2))
    for axis, plot in zip(axes.flat, curve_plots(trainings, PLOTS), strict=True):
        for one in plot.series:
            axis.plot(one.x, one.y, STYLES[one.kind], marker=".", color=f"C{one.colour}", label=one.name)
        axis.set(title=plot.title, xlabel="epoch", yscale="log" if plot.log else "linear")
        if plot.title not in LEARNED:
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if plot.series:
            axis.legend(fontsize=8)
    with atomic_path(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata=SOFTWARE)
    pyplot.close(figure)
