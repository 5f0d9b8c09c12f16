"""How many cores this process may use: those of the machine, of its affinity, and of its container's quota."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Of cgroup 2: microseconds of processor time in so many microseconds, or `max`."""


def usable_cores() -> int:
    """Return how many threads can run at once, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, core_quota() or cores)


def core_quota() -> int | None:
    """Return how many whole cores the container may use, at least 1; None where there is no quota."""
    try:
        allowed, period = _QUOTA.read_text().split()
        return max(1, int(allowed) // int(period))
    except (OSError, ValueError):  # another system, or `max`
        return None
