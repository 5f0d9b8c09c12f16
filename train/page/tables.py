"""The page's tables of figures: a run's own, and beside the paper's."""

from __future__ import annotations

from typing import Final, NamedTuple

from train.page.paper import reported
from train.page.run_files import Run, Trained
from train.report import flat_figures

LOWER_IS_BETTER: Final = ("median rank",)
NO_QUALITY: Final = ("best epoch", "validation RSUM")
"""What tells of the choice of weights, and nothing of the test split."""


class Change(NamedTuple):
    """What soft labels change in a figure."""

    text: str
    effect: str
    """better, worse or same."""


class Row(NamedTuple):
    """One figure of every training."""

    name: str
    values: list[str]
    change: Change | None


class Beside(NamedTuple):
    """One of the paper's figures with its counterpart."""

    measure: str
    data: str
    ours: list[str]
    change: Change | None
    paper: tuple[str, str]
    paper_change: Change


def own_table(trainings: tuple[Trained, ...]) -> list[Row]:
    """Return the figures on the test split, a row each."""
    flat = [flat_figures(trained.figures) for trained in trainings]
    names = [name for name in flat[-1] if name not in NO_QUALITY and all(name in figures for figures in flat)]
    return [_row(name, [figures[name] for figures in flat]) for name in names]


def beside_the_paper(run: Run) -> tuple[str, list[Beside]]:
    """Return the paper's nearest model, and its figures beside those that the run has."""
    model, figures = reported(run.parameters.student.model)
    flat = [flat_figures(trained.figures) for trained in run.trainings]
    rows = []
    for figure in figures:
        ours = [found[figure.ours] for found in flat if figure.ours in found]
        rows.append(
            Beside(
                figure.measure,
                figure.data,
                [f"{value:.1f}" for value in ours],
                _change(figure.ours, ours),
                (f"{figure.base:.1f}", f"{figure.cusa:.1f}"),
                difference(figure.base, figure.cusa),
            )
        )
    return model, rows


def difference(before: float, after: float, *, lower_is_better: bool = False) -> Change:
    """Return what changed, to one decimal."""
    rounded = round(after - before, 1)
    better = rounded < 0 if lower_is_better else rounded > 0
    if not rounded:
        return Change("±0.0", "same")
    return Change(f"{rounded:+.1f}".replace("-", "−"), "better" if better else "worse")


def _row(name: str, values: list[float]) -> Row:
    return Row(name, [f"{value:.1f}" for value in values], _change(name, values))


def _change(name: str, values: list[float]) -> Change | None:
    if len(values) != 2:
        return None
    return difference(*values, lower_is_better=name.startswith(LOWER_IS_BETTER))
