"""Charts as geometry that the page's template draws as inline SVG: no script, no picture, light and dark by CSS.

Lengths are in units of the SVG's view box, `WIDTH` by `HEIGHT`. Colours are numbers of the page's palette.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from train.report.training_curves import Array, CurvePlot, Series

WIDTH: Final = 360
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 24
"""Margins around the plotted area."""
FEWEST_TICKS: Final = 3


class Tick(NamedTuple):
    """A mark of an axis."""

    place: float
    text: str


class Mark(NamedTuple):
    """What stands for one series: a line, a filled area or dots."""

    name: str
    path: str
    """The `d` of an SVG path."""
    colour: int
    kind: str = "line"
    """line, dashed, area or dots."""


class Chart(NamedTuple):
    """A titled chart."""

    title: str
    alt: str
    """In words, for screen readers."""
    marks: list[Mark]
    x: list[Tick]
    y: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


class _Axis:
    """Places values of `low`…`high` between two ends of the view box."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self._log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        pad = 0.0 if high > low else max(abs(high), 1.0) / 2
        self._low, self._high = low - pad, high + pad
        self._start, self._end = start, end

    def __call__(self, values: Array) -> Array:
        shares = ((np.log10(values) if self._log else values) - self._low) / (self._high - self._low)
        placed: Array = self._start + shares * (self._end - self._start)
        return placed

    def ticks(self, whole: bool = False) -> list[Tick]:
        """Return some round values within the ends."""
        low, high = (10.0**self._low, 10.0**self._high) if self._log else (self._low, self._high)
        values = _within(LogLocator(subs=(1, 2, 5)), low, high) if self._log else np.empty(0)
        if len(values) < FEWEST_TICKS:  # a linear axis, or one within one power of ten
            values = _within(MaxNLocator(5, integer=whole, min_n_ticks=1), low, high)
        return [Tick(round(float(place), 1), f"{value:.6g}") for place, value in zip(self(values), values, strict=True)]


def _within(locator: Locator, low: float, high: float) -> Array:
    values: Array = np.asarray(locator.tick_values(low, high))
    slack = 1e-9 * min(high - low, abs(low) or high)
    return values[(values >= low - slack) & (values <= high + slack)]


def line_chart(plot: CurvePlot) -> Chart | None:
    """Return the curves over epochs; None: there is nothing to draw."""
    kept = []
    for one in plot.series:
        good = np.isfinite(one.y) & ((one.y > 0) | (not plot.log))
        if good.any():
            kept.append(replace(one, x=one.x[good].astype(float), y=one.y[good].astype(float)))
    if not kept:
        return None
    all_x, all_y = np.concatenate([one.x for one in kept]), np.concatenate([one.y for one in kept])
    across = _Axis(all_x.min(), all_x.max(), LEFT + 6, WIDTH - RIGHT - 6)
    up = _Axis(all_y.min(), all_y.max(), HEIGHT - BOTTOM - 6, TOP + 6, plot.log)
    marks = [_mark(one, across(one.x), up(one.y)) for one in kept]
    spans = (
        f"{one.name} from {one.y[0]:.3g} after epoch {one.x[0]:g} to {one.y[-1]:.3g} after epoch {one.x[-1]:g}"
        for one in kept
    )
    alt = f"{'; '.join(spans)}."
    return Chart(title=plot.title, alt=alt, marks=marks, x=across.ticks(whole=True), y=up.ticks())


def histogram(title: str, edges: Array, series: Sequence[Series], x: Sequence[tuple[float, str]], alt: str) -> Chart:
    """Return steps over the bins between `edges` (n + 1,): each series has y (n,); `x` has its ticks."""
    across = _Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    up = _Axis(0.0, max(float(one.y.max()) for one in series) or 1.0, HEIGHT - BOTTOM, TOP)
    marks = []
    for one in series:
        steps_x = across(np.repeat(edges, 2))
        steps_y = up(np.concatenate([[0.0], np.repeat(one.y, 2), [0.0]]))
        marks.append(_mark(one, steps_x, steps_y))
    within = [(value, text) for value, text in x if edges[0] <= value <= edges[-1]]
    ticks = [Tick(round(float(across(np.array(value))), 1), text) for value, text in within]
    return Chart(title=title, alt=alt, marks=marks, x=ticks, y=up.ticks())


def scatter(title: str, points: Array, groups: Array, names: dict[int, str], alt: str) -> Chart:
    """Return (n, 2) `points` without axes, coloured by their groups (n,); the last of the `names` lies beneath."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([WIDTH - 2 * TOP, HEIGHT - 2 * TOP])
    scale = (room / np.maximum(high - low, 1e-9)).min()
    placed = np.array([WIDTH / 2, HEIGHT / 2]) + (points - (low + high) / 2) * scale
    marks = []
    for number, name in reversed(names.items()):
        here = placed[groups == number]
        if len(here):
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in here)
            marks.append(Mark(name=name, path=path, colour=number, kind="dots"))
    return Chart(title=title, alt=alt, marks=marks, x=[], y=[])


def _mark(series: Series, x: Array, y: Array) -> Mark:
    if len(x) == 1:  # a line of one point would not be seen
        return Mark(name=series.name, path=f"M{x[0]:.1f} {y[0]:.1f}h0", colour=series.colour, kind="dots")
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    return Mark(name=series.name, path=path, colour=series.colour, kind=series.kind)
