"""The figures as a person reads them: one table a task, a column a model, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from train.evaluation.paper import PAPER
from train.evaluation.paper import Path as FigurePath
from train.evaluation.result import Result

HEADINGS: Final = {
    "retrieval": "retrieval",
    "eccv": "eccv",
    "image-retrieval": "image retrieval: R@1 by class",
    "sts": "sts: Spearman × 100",
}


def task_table(task: str, results: Sequence[Result]) -> Table | None:
    """Return the table of a task, from one result a model; None where nothing was measured.

    With two models there is a column of the second less the first.
    """
    figures = {result.model: dict(_flat(result.figures)) for result in results if result.figures}
    if not figures:
        return None
    paths = list(dict.fromkeys(path for found in figures.values() for path in found))
    published = {name: known for name, known in PAPER.items() if any((task, *path) in known for path in paths)}
    table = Table(title=HEADINGS[task], title_justify="left")
    table.add_column("")
    for heading in (*figures, *(["difference"] if len(figures) == 2 else [])):
        table.add_column(printable(heading), justify="right", overflow="fold")
    for paper in published:
        table.add_column(Text(f"paper: {paper}\nalone  + CUSA"), justify="right", style="dim")
    data_set = ""
    for path in paths:
        if len(path) > 1 and path[0] != data_set:
            table.add_row(printable(path[0]), style="bold")
        data_set = path[0]
        name = printable(path[0]) if len(path) == 1 else Text("  ") + printable(_spoken(path[1:]))
        theirs = [_pair(known.get((task, *path))) for known in published.values()]
        table.add_row(name, *_values([found.get(path) for found in figures.values()]), *theirs)
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
