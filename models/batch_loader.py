"""The one loader of extraction, training and measuring: batches made beside the model, in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from models.encoded import moved
from models.inputs import Input, Items, Rows, Tensors
from stores.cores import usable_cores
from stores.errors import CusaError

B = TypeVar("B")
D = TypeVar("D")
GRACE: Final = 30
"""Seconds that a loader's process lives on after SIGTERM."""


class BatchLoader(Generic[B]):
    """Makes a batch of each draw, in their order; in memory that a GPU copies from while it computes."""

    def __init__(
        self, make: Callable[[D], B], draws: Iterable[D], workers: int, device: torch.device, ahead: int = 2
    ) -> None:
        """Make them in up to `workers` processes, each `ahead` batches ahead; with none, here, as they are asked for.

        The processes, and what they cache, last over all passes, as long as the loader or an iterator does.
        """
        self.make, count = make, min(workers, usable_cores())
        self._batches = DataLoader(
            _Batches(make),
            sampler=draws,
            batch_size=None,  # a draw is a batch already
            num_workers=count,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=device.type == "cuda",
            prefetch_factor=ahead if count else None,
            persistent_workers=count > 0,
            generator=torch.Generator(),  # else each pass would draw from the global one
        )

    def __iter__(self) -> Iterator[B]:
        """Begin a pass at once. A variable that holds it through an error keeps the processes alive.

        Raises:
            CusaError: a batch cannot be made, or a process is lost. What fails here, in no other process, is raised as
                it is: its traceback leads to a plug-in's line.
        """
        batches = iter(self._batches)
        return reported(batches) if self._batches.num_workers else batches


def item_batches(
    items: Items, given: Input, rows: Rows, batch_size: int, workers: int, device: torch.device
) -> Iterator[Tensors]:
    """Yield batches of `rows` on the device; of samples from processes, since texts are ready sooner than sent."""
    runs = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    batches = BatchLoader(partial(given.batch, items), runs, workers if given.level == "sample" else 0, device)
    return (moved(batch, device) for batch in batches)


def reported(batches: Iterator[B | CusaError]) -> Iterator[B]:
    """Yield the batches; whatever goes wrong while they are made becomes one message, that of a CusaError."""
    try:
        for batch in batches:
            if isinstance(batch, CusaError):
                raise batch
            yield batch
    except (RuntimeError, OSError) as error:
        # A loader gives back a worker's error with its traceback as the message.
        what = str(error).strip().splitlines() or [type(error).__name__]
        advice = "What is finished is kept: run the same command again; with workers: 0 no other process is needed."
        raise CusaError(f"Inputs could not be prepared ({what[-1]})", advice=advice) from error


class _Batches(Dataset[Any]):
    """The batch of a draw; in a process, a user's fault in its place, which would lose its fields if it were raised."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, draw: Any) -> Any:
        try:
            return self._make(draw)
        except CusaError as error:
            if get_worker_info() is None:
                raise
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    """Go on after a stop, which a scheduler may send to all processes: training needs batches until it is saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
