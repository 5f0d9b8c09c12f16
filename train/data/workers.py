"""Signals in the processes that load data."""

from __future__ import annotations

import signal
from typing import Final

GRACE: Final = 30
"""Seconds that a loader's worker lives on after SIGTERM."""


def leave_signals_to_the_parent(_: int) -> None:
    """Let a loader's worker go on after a stop, which a scheduler may send to every process: training still needs it.

    It goes on for half a minute, unless the training ends it before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
