"""The pages' tables of figures: a run's own, an evaluation's, and beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from train.evaluation.result import TASKS, Result
from train.evaluation.tables import Line, task_figures
from train.report.page.paper import reported
from train.report.page.run_files import Run, Trained
from train.report.results import flat_figures

LOWER_IS_BETTER: Final = ("median rank",)
NO_QUALITY: Final = ("best epoch", "validation RSUM")
"""What tells of the choice of weights, and nothing of the test split."""


class Change(NamedTuple):
    """What soft labels change in a figure, or the second of two models."""

    text: str
    effect: str
    """better, worse or same."""


class Row(NamedTuple):
    """One figure of every model; or, without `values`, a heading of the rows that follow."""

    name: str
    values: list[str]
    change: Change | None
    papers: Sequence[tuple[str, str] | None] = ()
    """By model of the paper: alone, and with CUSA; None where that has none that is comparable."""


class Figures(NamedTuple):
    """A table of figures."""

    caption: str
    models: list[str]
    papers: list[str]
    """The paper's models."""
    rows: list[Row]


class PaperComparison(NamedTuple):
    """One of the paper's figures with its counterpart."""

    measure: str
    data: str
    ours: list[str]
    change: Change | None
    paper: tuple[str, str]
    paper_change: Change


def own_table(trainings: tuple[Trained, ...]) -> Figures:
    """Return the figures on the test split, a row each."""
    flat = [flat_figures(trained.figures) for trained in trainings]
    names = [name for name in flat[-1] if name not in NO_QUALITY and all(name in figures for figures in flat)]
    rows = [_row(name, [figures[name] for figures in flat]) for name in names]
    return Figures("This run", [trained.spoken for trained in trainings], [], rows)


def task_tables(results: Sequence[Result], names: Mapping[str, str]) -> list[Figures]:
    """Return a table of every task that was measured; `names` are the page's, by model."""
    tables = []
    for task in TASKS:
        found = task_figures(task, [result for result in results if result.task == task])
        if found is not None:
            models = [names[model] for model in found.models]
            tables.append(Figures(found.heading, models, found.papers, [_line(line) for line in found.lines]))
    return tables


def beside_the_paper(run: Run) -> tuple[str, list[PaperComparison]]:
    """Return the paper's nearest model, and its figures beside those that the run has."""
    model, figures = reported(run.parameters.student.model)
    flat = [flat_figures(trained.figures) for trained in run.trainings]
    rows = []
    for figure in figures:
        ours = [found[figure.ours] for found in flat if figure.ours in found]
        rows.append(
            PaperComparison(
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


def _line(line: Line) -> Row:
    measured = [value for value in line.values if value is not None]
    return Row(
        line.name,
        ["–" if value is None else f"{value:.1f}" for value in line.values],
        _change(line.name, measured) if len(line.values) == 2 else None,
        [pair and (f"{pair[0]:.1f}", f"{pair[1]:.1f}") for pair in line.papers],
    )


def _row(name: str, values: list[float]) -> Row:
    return Row(name, [f"{value:.1f}" for value in values], _change(name, values))


def _change(name: str, values: list[float]) -> Change | None:
    if len(values) != 2:
        return None
    return difference(*values, lower_is_better=name.startswith(LOWER_IS_BETTER))
