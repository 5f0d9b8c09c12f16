"""Every ordered pair of a student's modalities as a table with bars: what it finds, and what enrichment gains by it.

A bar is a model's R@1. Its gain is over the first model, such as one of fewer modalities; of the first model, that of
an enriched query or item is over the better of its parts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from train.evaluation.figure_tables import Change, FigureRow, difference, spoken

SECTION: Final = ("pairs", "zero_shot")
"""What of a model's figures these tables show."""
Figures = Mapping[str, Mapping[str, float]]


class BarRow(NamedTuple):
    """What a model finds by one query and item: a bar, and figures."""

    name: str
    model: str
    colour: int
    value: float
    """In percent."""
    since: float
    """Where the gain begins; the value itself, where there is none."""
    texts: list[str]
    gain: Change | None = None
    over: str = ""
    """What the gain is over."""


class BarTable(NamedTuple):
    """A table of bars."""

    caption: str
    bar: str
    """What a bar is."""
    columns: list[str]
    rows: list[BarRow]


def modality_tables(models: Mapping[str, Mapping[str, Any]]) -> list[BarTable]:
    """Return the tables of the models whose figures have pairs of modalities; none where none has."""
    pairs = {name: figures["pairs"] for name, figures in models.items() if figures.get("pairs")}
    zero_shot = {name: figures["zero_shot"] for name, figures in models.items() if figures.get("zero_shot")}
    tables = []
    if pairs:
        tables.append(_table("Every modality asks for every other", "R@1", pairs))
    if zero_shot:
        tables.append(_table("Zero-shot: classes that training has not seen", "accuracy", zero_shot))
    return tables


def others(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that these tables do not show."""
    return {name: value for name, value in figures.items() if name not in SECTION}


def _table(caption: str, bar: str, models: Mapping[str, Figures]) -> BarTable:
    ways = dict.fromkeys(way for figures in models.values() for way in figures)
    columns = dict.fromkeys(name for figures in models.values() for found in figures.values() for name in found)
    rows = []
    for way in ways:
        for colour, (model, figures) in enumerate(models.items()):
            if way not in figures:
                continue
            found, base = figures[way], _base(models, model, way, bar)
            value = float(found[bar])
            gain = (difference(base[1], value), base[0]) if base else (None, "")
            texts = FigureRow("", [found.get(column) for column in columns]).texts
            since = base[1] if base else value
            rows.append(BarRow(_shown(way), model if len(models) > 1 else "", colour % 6, value, since, texts, *gain))
    return BarTable(caption, bar, [*columns], rows)


def _base(models: Mapping[str, Figures], model: str, way: str, bar: str) -> tuple[str, float] | None:
    """Return what a figure is set against, by name, and its value."""
    first, figures = next(iter(models.items()))
    if model != first and way in figures:
        return first, figures[way][bar]
    if "chance" in models[model][way]:
        return "chance", models[model][way]["chance"]
    query, _, item = way.partition("_to_")
    parts = [f"{one}_to_{item}" for one in query.split("+")] + [f"{query}_to_{one}" for one in item.split("+")]
    known = [(models[model][part][bar], part) for part in parts if part != way and part in models[model]]
    return (_shown(max(known)[1]), max(known)[0]) if known else None


def _shown(way: str) -> str:
    return spoken(way).replace("→", " → ")
