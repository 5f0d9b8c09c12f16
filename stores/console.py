"""What a person looks at while a command runs: one console (on standard error) and one kind of progress bar."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Where there is no terminal (a log file, DVC's pipe), lines should not be folded at 80 columns.
console: Final = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)


class _RateColumn(ProgressColumn):
    """The rate of a task, in its own unit a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def progress_bar() -> Progress:
    """Return a progress bar with counts, rate and remaining time; quiet where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
