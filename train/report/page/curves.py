"""The curves of trainings: validation RSUM, the parts of the loss, the temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from train.report.page.charts import Chart, Series, line_chart
from train.report.page.shown import Shown, dashed

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


def curves(models: Sequence[Shown]) -> list[Chart]:
    """Return the charts of all models that have epochs: of two together, of more a chart each, but for their RSUM."""
    models = [model for model in models if model.epochs]
    together = [models] if len(models) <= 2 else [[model] for model in models]
    charts = [line_chart("Validation RSUM", _series(models, "validation/"), _told(models, "validation/RSUM"))]
    for some in together:
        whose = "" if len(together) == 1 else f", {some[0].name}"
        losses, temperatures = _series(some, "loss/"), _series(some, "temperature/")
        charts += [
            line_chart(f"Parts of the loss{whose}", losses, _told(some, "loss/InfoNCE"), log=True),
            line_chart(f"Temperatures{whose}", temperatures, _told(some, "temperature/contrast")),
        ]
    return [chart for chart in charts if chart is not None]


def _series(models: Sequence[Shown], prefix: str) -> list[Series]:
    series = []
    for number, model in enumerate(models):
        kind = "dashed" if model is dashed(models) else "line"
        epochs = np.array([epoch["epoch"] for epoch in model.epochs])
        for name, colour in COLOURS.items():
            if not name.startswith(prefix) or not _moves(model, name):
                continue
            values = np.array([epoch.get(name, np.nan) for epoch in model.epochs])
            label = f"{name.removeprefix(prefix)} ({model.name})" if len(models) > 1 else name.partition("/")[2]
            colour = colour if len(models) <= 2 else number
            series.append(Series(name=label, x=epochs, y=values, colour=colour, kind=kind))
    return series


def _moves(model: Shown, name: str) -> bool:
    weight = _LEARNED.get(name)
    return weight is None or model.loss is None or bool(getattr(model.loss, weight))


def _told(models: Sequence[Shown], name: str) -> str:
    spans = [
        f"{model.name}: {model.epochs[0].get(name, np.nan):.3g} after epoch 1, "
        f"{model.epochs[-1].get(name, np.nan):.3g} after epoch {len(model.epochs)}"
        for model in models
    ]
    return f"{name.replace('/', ' ')}. {'; '.join(spans)}."
