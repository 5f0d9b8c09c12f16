"""Runs of cusa-extract in processes of their own, and killing them at random moments."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import forked


def start(store: Path, *flags: str) -> forked.Running:
    """Start cusa-extract on `store`, with nothing but the default parameters and `flags`."""
    return forked.start("pipeline.cli", "--params", "/dev/null", "--store", str(store), *flags)


def finish(run: forked.Running) -> str:
    """Wait for a run that should end well, and return what it printed."""
    output, errors = run.communicate(600)
    assert run.returncode == 0, errors
    return output + errors


def kill_until_whole(folder: Path, kills: int, *flags: str) -> tuple[Path, Path]:
    """Make a store undisturbed and another with `kills` SIGKILLs at random moments; return both.

    Whenever the second is finished before all kills have come, a random half of its parts and shards is removed.
    """
    whole, cut = folder / "whole", folder / "cut"
    began = time.monotonic()
    finish(start(whole, *flags))
    seconds = time.monotonic() - began
    moments = random.Random(0)
    killed = 0
    while killed < kills:
        run, began = start(cut, *flags), time.monotonic()
        try:
            run.communicate(timeout=moments.uniform(0.3, 0.9) * seconds)
        except TimeoutError:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            killed += 1
        else:
            assert run.returncode == 0
            # The machine may be faster now than it was: else no moment would come before the end.
            seconds = time.monotonic() - began
            for path in [*cut.rglob("*.h5"), *cut.rglob("*.tar")]:
                if moments.random() < 0.5:
                    path.unlink()
    finish(start(cut, *flags))
    return whole, cut
