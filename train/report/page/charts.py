"""Charts as geometry that the page's template draws as inline SVG: no script, no picture, light and dark by CSS.

All lengths are in the units of the SVG's view box, `WIDTH` by `HEIGHT`; texts have the size of the page's small print
on a phone. Colours are numbers of the page's palette.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH: Final = 360
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 24
"""Margins around the plotted area."""
FEWEST_TICKS: Final = 3

Array = NDArray[Any]


class Tick(NamedTuple):
    """A mark of an axis."""

    place: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What stands for one series: a line, a filled area or dots."""

    name: str
    path: str
    """The `d` of an SVG path."""
    colour: int
    kind: str = "line"
    """line, dashed, area or dots."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A titled chart."""

    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[int] = LEFT
    right: ClassVar[int] = WIDTH - RIGHT

    title: str
    told: str
    """In words, for who does not see it."""
    marks: list[Mark]
    x: list[Tick]
    y: list[Tick]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one name over x: (n,) each; what is not finite is left out."""

    name: str
    x: Array
    y: Array
    colour: int
    kind: str = "line"


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
        if self._log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            values: Array = np.array([digit * 10.0**power for power in powers for digit in (1, 2, 5)])
            logs = np.log10(values)
            values = values[(logs >= self._low - 1e-9) & (logs <= self._high + 1e-9)]
            if len(values) < FEWEST_TICKS:  # a range within one power of ten
                values = _round_values(10.0**self._low, 10.0**self._high, whole)
        else:
            values = _round_values(self._low, self._high, whole)
        return [Tick(round(float(place), 1), f"{value:.6g}") for place, value in zip(self(values), values, strict=True)]


def _round_values(low: float, high: float, whole: bool) -> Array:
    values: Array = np.asarray(MaxNLocator(5, integer=whole, min_n_ticks=1).tick_values(low, high))
    slack = 1e-9 * (high - low)
    return values[(values >= low - slack) & (values <= high + slack)]


def line_chart(title: str, series: Sequence[Series], told: str, *, log: bool = False) -> Chart | None:
    """Return the series over epochs; `log` is of y and leaves out what is not above zero. None: nothing to draw."""
    kept = []
    for one in series:
        good = np.isfinite(one.y) & ((one.y > 0) | (not log))
        if good.any():
            kept.append((one, one.x[good].astype(float), one.y[good].astype(float)))
    if not kept:
        return None
    all_x, all_y = (np.concatenate([part[place] for part in kept]) for place in (1, 2))
    across = _Axis(all_x.min(), all_x.max(), LEFT + 6, WIDTH - RIGHT - 6)
    up = _Axis(all_y.min(), all_y.max(), HEIGHT - BOTTOM - 6, TOP + 6, log)
    marks = [Mark(name=one.name, path=_line(across(x), up(y)), colour=one.colour, kind=one.kind) for one, x, y in kept]
    return Chart(title=title, told=told, marks=marks, x=across.ticks(whole=True), y=up.ticks())


def histogram(title: str, edges: Array, series: Sequence[Series], x: Sequence[tuple[float, str]], told: str) -> Chart:
    """Return steps over the bins between `edges` (n + 1,): each series has y (n,); `x` has its ticks."""
    across = _Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    up = _Axis(0.0, max(float(one.y.max()) for one in series) or 1.0, HEIGHT - BOTTOM, TOP)
    marks = []
    for one in series:
        steps_x = across(np.repeat(edges, 2))
        steps_y = up(np.concatenate([[0.0], np.repeat(one.y, 2), [0.0]]))
        marks.append(Mark(name=one.name, path=_line(steps_x, steps_y), colour=one.colour, kind=one.kind))
    within = [(value, text) for value, text in x if edges[0] <= value <= edges[-1]]
    ticks = [Tick(round(float(across(np.array(value))), 1), text) for value, text in within]
    return Chart(title=title, told=told, marks=marks, x=ticks, y=up.ticks())


def scatter(title: str, points: Array, groups: Array, names: dict[int, str], told: str) -> Chart:
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
    return Chart(title=title, told=told, marks=marks, x=[], y=[])


def _line(x: Array, y: Array) -> str:
    if len(x) == 1:
        return f"M{x[0]:.1f} {y[0]:.1f}h.1"
    return "M" + "L".join(f"{one:.1f} {other:.1f}" for one, other in zip(x, y, strict=True))
