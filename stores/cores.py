"""How many cores this process may use, and how its threads wait for each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Of cgroup 2: microseconds of processor time in so many microseconds, or `max`."""
_SPINS: Final = "3000"
"""How often a thread looks whether there is work before it sleeps; GNU's OpenMP has 300,000, many milliseconds. Where
another process wants the core, the one that is waited for gets it only when the one that waits gives it up."""


def usable_cores() -> int:
    """Return how many threads can run at once, at least 1: by the machine, its affinity and the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, core_quota() or cores)


def core_quota() -> int | None:
    """Return how many whole cores the container may use, at least 1; None where there is no quota."""
    try:
        allowed, period = _QUOTA.read_text().split()
        return max(1, int(allowed) // int(period))
    except (OSError, ValueError):  # another system, or `max`
        return None


def yield_to_neighbours() -> None:
    """Have torch's threads that wait soon give up their core, and no more of them than the cores that a quota leaves.

    Not by the load of the moment: other numbers of threads add in another order, and a run must be the same again.
    What a person has set stays. Without effect once torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if core_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
