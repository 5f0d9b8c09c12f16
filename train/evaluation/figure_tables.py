"""Tables of figures: a column per model or training, the difference of two, and the paper's figures beside them.

The terminal and the pages render the same `FigureTable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from stores.console import Listing, printable
from train.evaluation.paper import PAPER, FigurePath
from train.evaluation.result import TASKS, Result

CAPTIONS: Final = {
    "retrieval": "retrieval",
    "eccv": "eccv: many-to-many relevance",
    "image-retrieval": "image retrieval: R@1 by class",
    "sts": "sts: Spearman × 100",
}
LOWER_IS_BETTER: Final = ("median rank",)


class Change(NamedTuple):
    """What soft labels change in a figure, or what the second of two models has over the first."""

    text: str
    effect: str
    """better, worse or same."""


class FigureRow(NamedTuple):
    """One figure of every model; or, without `values`, a heading of the rows that follow."""

    name: str
    values: Sequence[float | None]
    """By model; None where it was not measured. A whole number, such as an epoch's, is no measured quantity."""
    papers: Sequence[tuple[float, float] | None] = ()
    """By model of the paper: alone, and with CUSA; None where it has none that is comparable."""
    indented: bool = False

    @property
    def texts(self) -> list[str]:
        """The values as they are written."""
        return [f"{one:.1f}" if isinstance(one, float) else "–" if one is None else str(one) for one in self.values]

    @property
    def change(self) -> Change | None:
        """What the second of two models has over the first."""
        measured = [value for value in self.values if isinstance(value, float)]
        if not len(measured) == len(self.values) == 2:
            return None
        return difference(*measured, lower_is_better=self.name.startswith(LOWER_IS_BETTER))


class FigureTable(NamedTuple):
    """A table of figures."""

    caption: str
    models: list[str]
    """Headings: models, or a run's trainings."""
    rows: list[FigureRow]
    papers: Sequence[str] = ()
    """The paper's models that have a comparable figure."""

    def terminal(self) -> Table:
        """Return the table for a terminal; of two models with a column of the second less the first."""
        table = Listing(title=self.caption, title_justify="left")
        table.add_column("metric", no_wrap=True)
        compares = len(self.models) == 2
        for heading in (*self.models, *(["difference"] * compares)):
            table.add_column(Text(printable(heading)), justify="right", overflow="fold")
        for paper in self.papers:
            table.add_column(Text(f"paper: {paper}\nalone  + CUSA"), justify="right", style="dim")
        for row in self.rows:
            change = [row.change.text if row.change else ""] * compares
            papers = (f"{pair[0]:.1f}  {pair[1]:.1f}" if pair else "" for pair in row.papers)
            name = Text("  " * row.indented + printable(row.name))
            table.add_row(name, *row.texts, *change, *papers, style=None if row.values else "bold")
        return table


def task_tables(results: Sequence[Result], names: Mapping[str, str]) -> list[FigureTable]:
    """Return a table of every task that was measured; `names` are those that headings have room for, by model."""
    tables = []
    for task in TASKS:
        figures = {one.model: dict(flattened(one.figures)) for one in results if one.task == task and one.figures}
        paths = dict.fromkeys(path for found in figures.values() for path in found)
        published = {name: known for name, known in PAPER.items() if any((task, *path) in known for path in paths)}
        rows = []
        data_set = ""
        for path in paths:
            if len(path) > 1 and path[0] != data_set:
                rows.append(FigureRow(path[0], []))
            data_set = path[0]
            values = [found.get(path) for found in figures.values()]
            papers = [known.get((task, *path)) for known in published.values()]
            rows.append(FigureRow(spoken(" ".join(path[1:])) or path[0], values, papers, indented=len(path) > 1))
        if rows:
            tables.append(FigureTable(CAPTIONS[task], [names[model] for model in figures], rows, [*published]))
    return tables


def difference(before: float, after: float, *, lower_is_better: bool = False) -> Change:
    """Return what changed, to one decimal."""
    rounded = round(after - before, 1)
    better = rounded < 0 if lower_is_better else rounded > 0
    if not rounded:
        return Change("±0.0", "same")
    return Change(f"{rounded:+.1f}".replace("-", "−"), "better" if better else "worse")


def spoken(name: str) -> str:
    """Return the name of a figure as tables write it."""
    return name.replace("_to_", "→").replace("_", " ")


def flattened(figures: dict[str, Any], above: FigurePath = ()) -> Iterator[tuple[FigurePath, float]]:
    """Yield nested figures with the names that lead to each."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flattened(value, (*above, name))
        else:
            yield (*above, name), value
