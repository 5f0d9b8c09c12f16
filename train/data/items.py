"""The items of a split in the order of their rows, a batch at a time, as they are measured."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from models.inputs import Input, Tensors
from stores.cores import usable_cores
from train.data.mixture import Mixture

GRACE: Final = 30
"""Seconds that a loader's worker lives on after SIGTERM."""


class ItemBatches(Dataset[Tensors]):
    """Batches of the items of one modality; made in any process."""

    def __init__(self, items: Mixture, given: Input, rows: NDArray[np.int64], batch_size: int) -> None:
        """Cut `rows` of the input's level into batches."""
        self._items, self._given, self._rows, self._size = items, given, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __getitem__(self, number: int) -> Tensors:
        rows = self._rows[number * self._size : (number + 1) * self._size]
        return self._given.batch(self._items, rows, partial(self._given.item, self._items, augment=False))


def item_batches(
    items: Mixture, given: Input, rows: NDArray[np.int64], batch_size: int, workers: int, pinned: bool
) -> Iterator[Tensors]:
    """Yield the batches of `rows`, those of the samples from `workers` processes: texts are ready sooner than sent."""
    return iter(
        DataLoader(
            ItemBatches(items, given, rows, batch_size),
            batch_size=None,
            num_workers=min(workers, usable_cores()) if given.level == "sample" else 0,
            worker_init_fn=leave_signals_to_the_parent,
            pin_memory=pinned,
        )
    )


def leave_signals_to_the_parent(_: int) -> None:
    """Let a loader's worker go on after a stop, which a scheduler may send to every process: training still needs it.

    It goes on for half a minute, unless the training ends it before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
