"""What a person looks at after a run: the table of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from stores.console import Listing
from stores.errors import DamagedRunError


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
    # What could not be measured of one training may be measured of the other.
    for name in dict.fromkeys(name for figures in flat.values() for name in figures):
        values = [figures.get(name) for figures in flat.values()]
        digits = 0 if name == "best epoch" else 1
        shown = ["–" if value is None else f"{value:.{digits}f}" for value in values]
        if compare and digits and None not in values:
            shown.append(f"{values[1] - values[0]:+.1f}")  # type: ignore[operator]
        table.add_row(name, *shown)
    return table


def flat_figures(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return a training's figures under the names that they have in tables, such as "image→text · R@1"."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        spoken = f"{prefix}{name}".replace("_to_", "→").replace("true_relevance", "true").replace("_", " ")
        flat |= flat_figures(value, f"{spoken} · ") if isinstance(value, dict) else {spoken: float(value)}
    return flat
