"""Stopping on request: SIGTERM (a scheduler) and Ctrl-C end a run at the next step, saved.

The signal only sets a flag; the training asks at moments that all processes share, so that all stop at the same step.
A second Ctrl-C is not waited for where there is one process: it ends the run at once, and the last periodic checkpoint
counts. (Launchers of several processes pass signals on, so that each may come twice.)
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import click

from train.fit.processes import Processes

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A stop was asked for; raised at a moment at which everything can be saved. No fault: nothing else catches it."""


class Stop:
    """Whether a stop was asked for, in any process."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._signal: signal.Signals | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._signal == number == signal.SIGINT and self.processes.count == 1:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)

    def asked(self) -> bool:
        """Return whether any process was asked to stop; all of them must call this at the same moments."""
        return self.processes.any(self._signal is not None)

    def check(self) -> None:
        """Raise Stopped if any process was asked to stop; all of them must call this at the same moments."""
        if self.asked():
            raise Stopped

    def check_alone(self) -> None:
        """Raise Stopped if this process was asked to stop and there is no other, which would wait for it."""
        if self.processes.count == 1:
            self.check()

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells expect."""
        return 128 + (self._signal or signal.SIGTERM)


@contextmanager
def stopping(processes: Processes) -> Iterator[Stop]:
    """Listen for signals while the block runs; a Stopped that leaves it becomes a sentence and an exit code."""
    stop = Stop(processes)
    # Only the main thread may install handlers (a notebook or a test may call from another).
    listening = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    earlier = {number: signal.signal(number, stop.ask) for number in listening}
    try:
        yield stop
    except Stopped as stopped:
        if processes.is_main:
            click.echo(
                f"Stopped{f' {stopped}' if str(stopped) else ''}. Run the same command again to go on.", err=True
            )
        sys.exit(stop.exit_code)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
