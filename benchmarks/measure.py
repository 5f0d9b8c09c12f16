"""Measuring two things in turn, and what a benchmark reports."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark: what was measured against which yardstick, and the bound that it should keep."""

    name: str
    ours: float
    yardstick: float
    unit: str
    ratio: float
    bound: str
    kept: bool


def accelerator_of(device: torch.device, precision: str = "fp32") -> Accelerator:
    """Return one for a device and precision, whatever the process had before: accelerate keeps a single state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what one call gives and the seconds it takes; what a GPU was still doing before is waited for first."""
    _wait_for_gpu()
    started = time.perf_counter()
    given = work()
    _wait_for_gpu()
    return given, time.perf_counter() - started


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    return timed(work)[1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, as it does in a process that decodes beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(ours: Callable[[], object], yardstick: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Run both in turn after one unmeasured call each, the other one first in every second round.

    Returns:
        The median seconds of ours and of the yardstick, and the median of the ratios ours / yardstick round by round.
    """
    ours()
    yardstick()
    pairs = []
    for number in range(rounds):
        if number % 2:
            last = seconds(yardstick)
            pairs.append((seconds(ours), last))
        else:
            pairs.append((seconds(ours), seconds(yardstick)))
    one, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return one, other, statistics.median(a / b for a, b in pairs)
