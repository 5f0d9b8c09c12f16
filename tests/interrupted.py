"""Runs of cusa-extract in processes of their own, and killing them at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def start(store: Path, *flags: str) -> subprocess.Popen[str]:
    """Start cusa-extract on `store`, with nothing but the default parameters and `flags`."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "--params", "/dev/null"]
    paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    return subprocess.Popen(
        [*command, "--store", str(store), *flags],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run: subprocess.Popen[str]) -> str:
    """Wait for a run that should end well, and return what it printed."""
    output, errors = run.communicate(timeout=600)
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
        except subprocess.TimeoutExpired:
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
