"""The live view of a training: the epoch's bar, and under it the latest losses, temperatures and speed.

In a terminal the view stays at the bottom while training runs. Each epoch leaves one line; without a terminal, in a log
file, that line is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from stores.console import console
from train.fit.epoch import Epoch, StepMetrics

WAIT_MARKED: Final = 0.2
"""From this share of the time on, waiting for input is pointed out."""
_HINT: Final = "The model waits for its input: raise train.workers, or train.cache_gib."
_ABREAST: Final = 78
"""Width from which on losses, temperatures and speed stand side by side."""
_UNKNOWN: Final = "–"


class LiveView:
    """The live view of one training; a context manager, to be entered before the first epoch begins."""

    def __init__(
        self, title: str, epochs: int, steps: int, batch_size: int, validation_best: float | None = None
    ) -> None:
        """Show `epochs` of so many `steps` of `batch_size` pairs, over all processes; a resumed training has a best."""
        self._title, self._epochs, self._steps, self._batch_size = title, epochs, steps, batch_size
        self._best = -math.inf if validation_best is None else validation_best
        self._latest: StepMetrics | None = None
        self._before: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} pairs", style="progress.download"),
            TextColumn("{task.fields[left]}", style="progress.remaining", markup=False),
            auto_refresh=False,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=steps * batch_size, left="")
        # Transient: the view itself goes when training ends; the epochs' lines stay.
        self._live = Live(console=console, get_renderable=self._view, transient=True)

    def __enter__(self) -> LiveView:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, epoch: int, first_step: int) -> None:
        """Show an epoch (from 0) that begins, or goes on after its first `first_step` steps."""
        name = f"{self._title} · epoch {epoch + 1}/{self._epochs}"
        self._bar.update(self._task, completed=first_step * self._batch_size, description=name, left="")

    def step(self, metrics: StepMetrics) -> None:
        """Show the latest figures."""
        self._latest = metrics
        pairs_left = (self._steps - metrics.step) * self._batch_size
        left = f"{_duration(pairs_left, metrics.samples_per_second)} left"
        self._bar.update(self._task, completed=metrics.step * self._batch_size, left=left)

    def measuring(self) -> None:
        """Show that the epoch's training is over and validation runs."""
        self._bar.update(self._task, completed=self._steps * self._batch_size, left="validation …")

    def end(self, epoch: Epoch) -> None:
        """Print the epoch's permanent line."""
        better = epoch.validation_rsum > self._best
        if better:
            self._best = epoch.validation_rsum
        self._before = epoch.loss
        # A log file gets one line, whole; a narrow terminal may fold it between words.
        console.print(_epoch_line(epoch, self._title, self._epochs, better), soft_wrap=not console.is_terminal)

    def _view(self) -> RenderableType:
        metrics = self._latest
        if metrics is None:
            return self._bar
        temperatures = {name: (f"{value:.3f}",) for name, value in metrics.temperatures.items()}
        losses, speed = _losses(metrics.loss, self._before), _speed(metrics, self._best)
        groups = (_figures("loss", losses), _figures("temperature", temperatures), _figures("training", speed))
        hint = [Text(_HINT, style="yellow", no_wrap=True, overflow="ellipsis")] if metrics.wait > WAIT_MARKED else []
        if console.width < _ABREAST:
            return Group(self._bar, *groups, *hint)
        figures = Table.grid(padding=(0, 3), expand=True)
        for width in (28, 20, 24):  # what they need at most; a wider terminal is shared in proportion
            figures.add_column(ratio=width)
        figures.add_row(*groups)
        return Group(self._bar, figures, *hint)


def _figures(heading: str, rows: Mapping[str, Sequence[str | Text]]) -> Table:
    """Return a small table under a heading: by name, a figure and perhaps how it has changed."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(heading, no_wrap=True)
    for style in ("cyan", "dim")[: max(map(len, rows.values()), default=1)]:
        table.add_column(justify="right", style=style, no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _losses(loss: dict[str, float], before: dict[str, float]) -> dict[str, tuple[str, str]]:
    """Return each term, and how it differs from its mean over the epoch before."""
    changes = {name: f"{loss[name] - before[name]:+{_digits(loss[name])}}" for name in loss if name in before}
    return {name: (f"{value:{_digits(value)}}", changes.get(name, "")) for name, value in loss.items()}


def _speed(metrics: StepMetrics, best: float) -> dict[str, tuple[str | Text]]:
    marked = "bold yellow" if metrics.wait > WAIT_MARKED else ""
    return {
        "pairs/s": (f"{metrics.samples_per_second:,.0f}",),
        "input wait": (Text(f"{metrics.wait:.0%}", style=marked),),
        "learning rate": (f"{metrics.learning_rate:.2e}",),
        "best RSUM": (_UNKNOWN if best == -math.inf else f"{best:.1f}",),
    }


def _epoch_line(epoch: Epoch, title: str, epochs: int, better: bool) -> Text:
    # The total stands alone or not at all: it follows from its parts.
    parts = {name: value for name, value in epoch.loss.items() if name != "total" or len(epoch.loss) == 1}
    losses = " ".join(f"{name} {value:{_digits(value)}}" for name, value in parts.items())
    line = Text(f"{title} {epoch.epoch + 1}/{epochs} · ")
    line.append(f"RSUM {epoch.validation_rsum:.1f}{' ↑' if better else ''}", style="bold green" if better else "")
    line.append(f" · {losses} · {epoch.samples_per_second:,.0f}/s")
    if epoch.wait > WAIT_MARKED:
        line.append(f" · wait {epoch.wait:.0%}", style="yellow")
    return line


def _digits(value: float) -> str:
    """Return a format in which a small loss (InfoNCE of `reduction: reference`) is not 0.000."""
    return ".3f" if abs(value) >= 0.01 or value == 0 else ".1e"


def _duration(pairs: int, rate: float) -> str:
    if not (math.isfinite(rate) and rate > 0):
        return _UNKNOWN
    return str(timedelta(seconds=math.ceil(pairs / rate)))
