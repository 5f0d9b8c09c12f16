"""The figures as a person reads them: one table a task, a column a model, and the paper's figures beside them.

The terminal's table and the page's are made of the same `TaskFigures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from stores.console import Listing
from train.evaluation.paper import PAPER
from train.evaluation.paper import Path as FigurePath
from train.evaluation.result import Result

HEADINGS: Final = {
    "retrieval": "retrieval",
    "eccv": "eccv: many-to-many relevance",
    "image-retrieval": "image retrieval: R@1 by class",
    "sts": "sts: Spearman × 100",
}


class Line(NamedTuple):
    """A figure of every model; or, without `values`, the data set of the lines that follow."""

    name: str
    below: bool
    """Whether it stands under the name of its data set."""
    values: list[float | None]
    """By model; None where it was not measured."""
    papers: list[tuple[float, float] | None]
    """By model of the paper: alone, and with CUSA; None where that has none that is comparable."""


class TaskFigures(NamedTuple):
    """All figures of a task."""

    heading: str
    models: list[str]
    papers: list[str]
    """The paper's models that have a comparable figure."""
    lines: list[Line]


def task_figures(task: str, results: Sequence[Result]) -> TaskFigures | None:
    """Return the figures of a task, from one result a model; None where nothing was measured."""
    figures = {result.model: dict(_flat(result.figures)) for result in results if result.figures}
    if not figures:
        return None
    paths = list(dict.fromkeys(path for found in figures.values() for path in found))
    published = {name: known for name, known in PAPER.items() if any((task, *path) in known for path in paths)}
    lines = []
    data_set = ""
    for path in paths:
        if len(path) > 1 and path[0] != data_set:
            lines.append(Line(path[0], False, [], []))
        data_set = path[0]
        values = [found.get(path) for found in figures.values()]
        papers = [known.get((task, *path)) for known in published.values()]
        lines.append(Line(_spoken(path[1:]) or path[0], len(path) > 1, values, papers))
    return TaskFigures(HEADINGS[task], list(figures), list(published), lines)


def task_table(task: str, results: Sequence[Result], names: Mapping[str, str]) -> Table | None:
    """Return the table of a task for a terminal, from one result a model; None where nothing was measured.

    `names` are those that headings have room for, by model. With two models there is a column of the second less the
    first.
    """
    figures = task_figures(task, results)
    if figures is None:
        return None
    table = Listing(title=figures.heading, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*(names[model] for model in figures.models), *(["difference"] if len(figures.models) == 2 else [])):
        table.add_column(printable(heading), justify="right", overflow="fold")
    for paper in figures.papers:
        table.add_column(Text(f"paper: {paper}\nalone  + CUSA"), justify="right", style="dim")
    for line in figures.lines:
        if line.values:
            name = Text("  " if line.below else "") + printable(line.name)
            table.add_row(name, *_values(line.values), *(_pair(pair) for pair in line.papers))
        else:
            table.add_row(printable(line.name), style="bold")
    return table


def printable(text: str) -> Text:
    """Return `text` with what might steer a terminal replaced; it is never taken for markup."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _values(values: list[float | None]) -> Iterator[str]:
    yield from ("–" if value is None else f"{value:.1f}" for value in values)
    if len(values) == 2:
        first, second = values
        yield "" if first is None or second is None else f"{second - first:+.1f}"


def _pair(figures: tuple[float, float] | None) -> str:
    return f"{figures[0]:.1f}  {figures[1]:.1f}" if figures else ""


def _flat(figures: dict[str, Any], above: FigurePath = ()) -> Iterator[tuple[FigurePath, float]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, name))
        else:
            yield (*above, name), float(value)


def _spoken(path: FigurePath) -> str:
    return " ".join(path).replace("_to_", "→").replace("_", " ")
