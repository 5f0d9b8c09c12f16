"""The models that a page shows side by side: their embeddings of one split, and what is known of their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stores.parameters import Loss
from train.evaluation.measured_split import MeasuredSplit
from train.losses.objective import Objective, make_objective
from train.report.page.charts import Chart, line_chart
from train.report.training_curves import LEARNED, TrainingCurves, curve_plots


@dataclass(frozen=True, kw_only=True)
class PageModel:
    """A model on a page."""

    name: str
    """How the page calls it."""
    tested: MeasuredSplit
    loss: Loss | None = None
    """What it was trained with; None where that is unknown."""
    epochs: Sequence[Mapping[str, float]] = ()
    """Of its training, by the names of epochs.csv; what that leaves empty is absent."""

    @cached_property
    def objective(self) -> Objective | None:
        """The terms of its loss, which say whether they are soft, or teach uni-modal heads."""
        return make_objective(self.loss) if self.loss else None

    @property
    def plain(self) -> bool:
        """Whether it is known to have been trained without soft labels."""
        return self.objective is not None and not self.objective.soft


def dashed(models: Sequence[PageModel]) -> PageModel | None:
    """Return which of two models has dashed lines: the one without soft labels, or else the first."""
    if len(models) != 2:
        return None
    plain = [model for model in models if model.plain]
    return plain[0] if len(plain) == 1 else models[0]


def learned_charts(models: Sequence[PageModel]) -> list[Chart]:
    """Return the charts of what the models learned, of those that have epochs."""
    trained = [model for model in models if model.epochs]
    broken = dashed(trained)
    curves = [TrainingCurves(one.name, one.epochs, "dashed" if one is broken else "line") for one in trained]
    charts = map(line_chart, curve_plots(curves, LEARNED))
    return [chart for chart in charts if chart is not None]
