"""The curves of trainings: validation RSUM, the parts of the loss, the temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.report.page.charts import Chart, Series, line_chart
from train.report.page.shown import Shown, dashed


def curves(models: Sequence[Shown]) -> list[Chart]:
    """Return the charts of all models that have epochs: of two together, of more a chart each, but for their RSUM."""
    models = [model for model in models if model.epochs]
    together = [models] if len(models) <= 2 else [[model] for model in models]
    charts = [line_chart("Validation RSUM", _series(models, "validation/"), _told(models, "validation/RSUM"))]
    for some in together:
        whose = "" if len(together) == 1 else f", {some[0].name}"
        losses, temperatures = _series(some, "loss/"), _series(some, "temperature/")
        charts += [
            line_chart(f"Parts of the loss{whose}", losses, _told(some, *_names(some, "loss/")[:1]), log=True),
            line_chart(f"Temperatures{whose}", temperatures, _told(some, *_names(some, "temperature/")[:1])),
        ]
    return [chart for chart in charts if chart is not None]


def _series(models: Sequence[Shown], prefix: str) -> list[Series]:
    series = []
    for number, model in enumerate(models):
        kind = "dashed" if model is dashed(models) else "line"
        epochs = np.array([epoch["epoch"] for epoch in model.epochs])
        for colour, name in enumerate(_names(models, prefix)):
            values = np.array([epoch.get(name, np.nan) for epoch in model.epochs])
            if np.isnan(values).all():
                continue
            label = f"{name.removeprefix(prefix)} ({model.name})" if len(models) > 1 else name.partition("/")[2]
            colour = colour if len(models) <= 2 else number
            series.append(Series(name=label, x=epochs, y=values, colour=colour, kind=kind))
    return series


def _names(models: Sequence[Shown], prefix: str) -> list[str]:
    """Return the figures of a kind that any model has, in their order: with the most terms first."""
    longest = sorted(models, key=lambda model: -len(model.epochs[0]))
    found = dict.fromkeys(name for model in longest for epoch in model.epochs for name in epoch)
    return [name for name in found if name.startswith(prefix) and name != "loss/total"]


def _told(models: Sequence[Shown], name: str = "") -> str:
    spans = [
        f"{model.name}: {model.epochs[0].get(name, np.nan):.3g} after epoch 1, "
        f"{model.epochs[-1].get(name, np.nan):.3g} after epoch {len(model.epochs)}"
        for model in models
    ]
    return f"{name.replace('/', ' ')}. {'; '.join(spans)}."
