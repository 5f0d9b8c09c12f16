"""What a person looks at after a run: the table of results, and the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import matplotlib
from rich.table import Table

from stores import TrainingError
from stores.atomic import atomic_path
from stores.console import Listing
from stores.ownership import SOFTWARE
from train.epoch import Epoch

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

HEADINGS: Final = (
    *("validation RSUM", "loss parts", "temperatures"),
    *("learning rate after the epoch", "pairs a second", "wait for input, % of the time"),
)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a run.

    Raises:
        TrainingError: the run has not finished.
    """
    try:
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        raise TrainingError(f"{folder} holds no finished run: it has no metrics.json. Run cusa-train.") from None
    return metrics


def result_table(metrics: dict[str, Any], folder: Path) -> Table:
    """Return the test figures, a column a training, and what the soft labels change."""
    table = Listing(title=f"test split · run {folder}", title_justify="left")
    table.add_column("metric")
    for title in metrics:
        table.add_column(title, justify="right")
    flat = {title: flat_figures(values) for title, values in metrics.items()}
    compare = len(flat) == 2
    if compare:
        table.add_column("difference", justify="right")
    for name in next(iter(flat.values())):
        values = [figures[name] for figures in flat.values()]
        if name == "best epoch":
            table.add_row(name, *(f"{value:.0f}" for value in values))
            continue
        difference = [f"{values[1] - values[0]:+.1f}"] if compare else []
        table.add_row(name, *(f"{value:.1f}" for value in values), *difference)
    return table


def flat_figures(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return a training's figures under the names that they have in tables, such as "image→text · R@1"."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        spoken = f"{prefix}{name}".replace("_to_", "→").replace("true_relevance", "true").replace("_", " ")
        flat |= flat_figures(value, f"{spoken} · ") if isinstance(value, dict) else {spoken: float(value)}
    return flat


def draw_curves(histories: dict[str, list[Epoch]], folder: Path) -> None:
    """Draw what was learned (RSUM, losses, temperatures) and how it went (rate, speed, wait) to `folder`/curves.png."""
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 6.6), layout="constrained", height_ratios=(3, 2))
    styles = ("--", "-") if len(histories) == 2 else ("-",)
    for (title, history), style in zip(histories.items(), styles, strict=True):
        epochs = [epoch.epoch + 1 for epoch in history]
        for number, part in enumerate(p for p in history[0].loss if p != "total"):
            values = [e.loss[part] for e in history]
            axes[0, 1].plot(epochs, values, style, marker=".", color=f"C{number}", label=f"{part} ({title})")
        for number, name in enumerate(history[0].temperatures):
            if title == list(histories)[-1] or name == "contrast":
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
