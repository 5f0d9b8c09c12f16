"""What a person looks at: consoles on standard error and output, one kind of progress bar, one kind of table.

Texts of foreign data sets are made such that a terminal may show them (`printable`, `cell`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Final, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def _width(stream: TextIO | None, wide: int) -> int | None:
    """Return None, so that rich asks, where COLUMNS or a terminal tell the width; else `wide`: a log is not folded."""
    return None if "COLUMNS" in os.environ or (stream is not None and stream.isatty()) else wide


console: Final = Console(stderr=True, highlight=False, markup=False, width=_width(sys.stderr, 120))
"""On standard error: what is said while work goes on. Names of files and data may have brackets: nothing is markup."""


def output(wide: int = 160) -> Console:
    """Return a console on standard output, of `wide` columns where nothing tells how many there are."""
    return Console(highlight=False, markup=False, width=_width(sys.stdout, wide))


_ROOM_FOR_RATES: Final = 72
_ROOMY: Final = 10_000
_JOINER: Final = "\N{ZERO WIDTH JOINER}"
_FOLDED: Final = 13
"""Columns up to which a cell is not folded, and in which one that may be folded within words can be read."""


class Listing(Table):
    """A table that stands upright where the columns are too few for it: a line a cell, a paragraph a row."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._is_readable(console, options):
            yield from super().__rich_console__(console, options)
        else:
            yield from self._lines(console)

    def _is_readable(self, console: Console, options: ConsoleOptions) -> bool:
        """Tell whether all columns have room for what may not be folded or cut in them.

        rich takes the room that is wanting from the widest columns: none is wider than some `most` afterwards.
        """
        roomy, wanted, least = options.update(max_width=_ROOMY), [], []
        for column in self.columns:
            cells = [*([column.header] if self.show_header else []), *column.cells]
            found = [Measurement.get(console, roomy, cell) for cell in cells]
            wanted.append(max((cell.maximum for cell in found), default=0))
            words = _FOLDED if column.overflow == "fold" else max((cell.minimum for cell in found), default=0)
            least.append(wanted[-1] if column.no_wrap or wanted[-1] <= _FOLDED else words)
        room = options.max_width - 3 * len(self.columns) - 1
        most = next((most for most in range(room, 0, -1) if sum(min(width, most) for width in wanted) <= room), 0)
        return all(min(width, most) >= need for width, need in zip(wanted, least, strict=True))

    def _lines(self, console: Console) -> Iterator[RenderableType]:
        if self.title:
            yield Text(str(self.title), style="italic", overflow="fold")
        names = [f"{column.header}: " if self.show_header and column.header else "" for column in self.columns]
        for first, *others in zip(*(column.cells for column in self.columns), strict=True):
            shown = [(name, _text(console, cell)) for name, cell in zip(names[1:], others, strict=True)]
            head = Text(names[0], overflow="fold") + _text(console, first)
            if not self.show_header:
                yield head + ": " + Text(", ").join(cell for _, cell in shown)
                continue
            head.stylize("bold")
            yield head
            for name, cell in shown:
                if cell.plain:
                    yield Padding(Text(name, overflow="fold") + cell, (0, 0, 0, 2))


def _text(console: Console, cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else console.render_str(str(cell))


def printable(text: str) -> str:
    """Return `text` on one line; what steers a terminal or turns a text's direction becomes a replacement character."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or c == _JOINER else "\N{REPLACEMENT CHARACTER}" for c in line)


def cell(text: str, longest: int = 120) -> Text:
    """Return `text` for a table's cell: printable, never taken for markup, cut at `longest` characters."""
    line = printable(text[: 2 * longest])
    return Text(line if len(line) <= longest else line[: longest - 1] + "…")


class _RateColumn(ProgressColumn):
    """The rate of a task, in its own unit a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def progress_bar() -> Progress:
    """Return a progress bar with counts and, where there is room, rate and remaining time."""
    roomy = console.width >= _ROOM_FOR_RATES
    return Progress(
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=16)] if roomy else []),
        MofNCompleteColumn(),
        *([_RateColumn(), TimeRemainingColumn()] if roomy else []),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
