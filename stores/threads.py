"""How torch's threads wait for each other, and how many there are: before torch is loaded, by OpenMP's variables."""

from __future__ import annotations

import os
from typing import Final

from stores.cores import core_quota, usable_cores

_SPINS: Final = "3000"
"""How often a thread looks whether there is work before it sleeps; GNU's OpenMP has 300,000, many milliseconds. Where
another process wants the core, the one that is waited for gets it only when the one that waits gives it up."""


def yield_to_neighbours() -> None:
    """Have threads that wait soon give up their core, and no more threads than the cores that a quota leaves.

    Not by the load of the moment: other numbers of threads add in another order, and a run must be the same again.
    What a person has set stays. Without effect once torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if core_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
