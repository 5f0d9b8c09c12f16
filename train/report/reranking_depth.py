"""R@K as a function of k, how many candidates a second stage ranks anew, and what each costs: a table and a plot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib import pyplot

from stores.ownership import write_signed
from train.evaluation.second_stage import AtDepth
from train.report.training_curves import save_drawing

TABLE: Final = "reranking.md"
PLOT: Final = "reranking.png"


def write_depths(folder: Path, tables: Mapping[str, Sequence[AtDepth]]) -> None:
    """Write `folder`/reranking.md and .png of models by name; nothing where none was reranked."""
    if not tables:
        return
    write_signed(folder / TABLE, "\n".join(_section(name, rows) for name, rows in tables.items()))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, rows in tables.items():
        for axis, places in zip(axes, ([max(row.k, 8) for row in rows], [row.seconds for row in rows]), strict=True):
            axis.plot(places, [row.rsum for row in rows], marker=".", label=name)
    axes[0].set(xscale="log", xlabel="k, of each query's nearest (left end: the first stage)", ylabel="RSUM")
    axes[1].set(xlabel="seconds of scoring", ylabel="RSUM")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_drawing(figure, folder / PLOT)


def _section(name: str, rows: Sequence[AtDepth]) -> str:
    title = re.sub(r"[^\w.:/@+-]", " ", name)
    lines = [
        f"# {title}: each query's k nearest, ranked anew",
        "",
        "k 0 is the first stage. Seconds are of scoring the pairs, both ways together.",
        "",
        "| k | pairs | seconds | images→texts R@1, 5, 10 | texts→images R@1, 5, 10 | RSUM |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ways = (", ".join(f"{value:.1f}" for value in one.values()) for one in row.recalls)
        lines.append(f"| {row.k} | {row.pairs:,} | {row.seconds:.1f} | {' | '.join(ways)} | {row.rsum:.1f} |")
    return "\n".join([*lines, ""])
