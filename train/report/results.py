"""The figures of a finished run, and their table: a column per training, and what the soft labels change."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from stores.errors import DamagedRunError
from train.evaluation.figure_tables import FigureRow, FigureTable, flattened, spoken


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a run.

    Raises:
        DamagedRunError: the run has not finished, or its figures are not as cusa-train wrote them.
    """
    path = folder / "metrics.json"
    try:
        metrics: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise DamagedRunError(path=path, expected="the figures of a finished run", advice="Run cusa-train.") from None
    if not isinstance(metrics, dict) or not metrics or not all(isinstance(found, dict) for found in metrics.values()):
        raise DamagedRunError(path=path, found=metrics, expected="figures by training")
    return metrics


def run_table(caption: str, figures: Mapping[str, dict[str, Any]], left_out: Collection[str] = ()) -> FigureTable:
    """Return the figures of a run's trainings, by what the table calls each; rows in `left_out` are not shown."""
    flat = [flat_figures(found) for found in figures.values()]
    # What could not be measured of one training may be measured of the other.
    names = dict.fromkeys(name for found in flat for name in found if name not in left_out)
    rows = [FigureRow(name, [found.get(name) for found in flat]) for name in names]
    return FigureTable(caption, list(figures), rows)


def flat_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Return a training's figures under the names that they have in its table, such as "image→text · R@1"."""
    flat = flattened(figures)
    return {" · ".join(map(spoken, path)).replace("true relevance", "true"): value for path, value in flat}
