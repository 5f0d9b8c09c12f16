"""What our commands share: an interrupt, or what the system refuses, ends with one sentence."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from stores.cores import yield_to_neighbours
from stores.errors import CusaError

GOES_ON: Final = "Run the same command again to go on from what is finished."


def leave_interrupts_to_the_parent(_: int) -> None:
    """Let a loader's worker ignore Ctrl-C: the command ends its workers itself, and says one sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_the_parent() -> None:
    """Let a process of ours end as soon as the one that started it has ended, however that was."""
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def loading(stays: bool = False) -> Iterator[None]:
    """Import libraries without searching them for garbage: half a million objects that all stay.

    It takes a quarter less time. With `stays`, later searches leave out whatever is alive by then, and forked workers
    go on sharing its memory: for a command, which has made nothing else yet.
    """
    known, was_on = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if stays and len(sys.modules) > known:
            gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """Let no Ctrl-C be lost while the block runs.

    Where one falls into a finaliser or a weak reference's callback, Python prints it there and goes on, as if nobody
    had asked; it is sent once more, a moment later.
    """
    earlier = sys.unraisablehook

    def again(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            earlier(lost)
            return
        later = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        later.daemon = True
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = earlier


@contextmanager
def resumable(advice: Callable[[], str] = lambda: GOES_ON) -> Iterator[None]:
    """Turn Ctrl-C (exit code 130, as shells expect) and a full or forbidden disk (2) into a word on how to go on.

    What works within loads its libraries there, and with a thought for whoever else is at work on the machine.
    """
    yield_to_neighbours()
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Stopped. {advice()}", err=True)
        sys.exit(130)
    except OSError as error:
        what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise CusaError(f"{what}. What is finished is kept; mend this and run the same command again.") from error
