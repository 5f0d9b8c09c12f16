"""The items of a split in the order of their rows, a batch at a time, as they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from models.inputs import Input, Tensors
from stores.cores import usable_cores
from train.data.mixture import Mixture
from train.data.workers import leave_signals_to_the_parent


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
