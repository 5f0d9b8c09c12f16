"""The curves of a finished run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib

from stores.atomic import atomic_path
from stores.ownership import SOFTWARE
from train.fit.epoch import Epoch

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

HEADINGS: Final = (
    *("validation RSUM", "loss parts", "temperatures"),
    *("learning rate after the epoch", "pairs a second", "wait for input, % of the time"),
)


def draw_curves(histories: dict[str, list[Epoch]], folder: Path) -> None:
    """Draw what was learned (RSUM, losses, temperatures) and how it went (rate, speed, wait) to `folder`/curves.png."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 6.6), layout="constrained", height_ratios=(3, 2))
    styles = ("--", "-") if len(histories) == 2 else ("-",)
    for (title, history), style in zip(histories.items(), styles, strict=True):
        epochs = [epoch.epoch + 1 for epoch in history]
        for number, part in enumerate(p for p in history[0].loss if p != "total"):
            values = [e.loss[part] for e in history]
            axes[0, 1].plot(epochs, values, style, marker=".", color=f"C{number}", label=f"{part} ({title})")
        for number, name in enumerate(history[0].temperatures):
            values = [e.temperatures[name] for e in history]
            axes[0, 2].plot(epochs, values, style, marker=".", color=f"C{number}", label=f"{name} ({title})")
        alone = (
            (axes[0, 0], [e.validation_rsum for e in history]),
            (axes[1, 0], [e.learning_rate for e in history]),
            (axes[1, 1], [e.samples_per_second for e in history]),
            (axes[1, 2], [100 * e.wait for e in history]),
        )
        for axis, values in alone:
            axis.plot(epochs, values, style, marker="o", color="black", label=title)
    for axis, heading in zip(axes.flat, HEADINGS, strict=True):
        axis.set_title(heading)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 1].set_yscale("log")
    for axis in axes[1, 1:]:
        axis.update_datalim([(1, 0)])  # from zero on
        axis.autoscale_view()
    with atomic_path(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata=SOFTWARE)
    pyplot.close(figure)
