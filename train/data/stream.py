"""The deterministic stream: which (image, caption) pairs make up each batch of an epoch, in every process.

The whole batch of a step is a pure function of (seed, epoch, step), known before anything is read; each process takes
its contiguous share of it. So a sample comes exactly once an epoch over all processes, all of them take as many steps,
and a run goes on at any step with any number of processes and loader workers.

Where stores are mixed, an epoch is one pass over the first one, the main store; the others take their share of the
places and go round their own passes, from epoch to epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stores import TrainingError
from train.data.passes import Passes
from train.data.shares import PERIOD, MixtureShares


class BatchRows(NamedTuple):
    """One process's pairs of one step, still as numbers."""

    epoch: int
    first_place: int
    """The first pair's place in the epoch, over all processes; the others follow it."""
    samples: NDArray[np.int64]
    """(N,)"""
    captions: NDArray[np.int64]
    """(N,)"""


class PairStream:
    """The draws of one process; set `epoch` and `first_step` before each pass."""

    def __init__(
        self, passes: Sequence[Passes], shares: MixtureShares, *, batch_size: int, rank: int = 0, processes: int = 1
    ) -> None:
        """Agree on the number of steps.

        Args:
            passes: of each store, the main one first.
            shares: which deal the places to the stores.
            batch_size: pairs of a step, over all processes.
            rank: this process's number.
            processes: how many there are.

        Raises:
            TrainingError: the batch cannot be shared out evenly, or a store cannot fill its share of one.
        """
        _check_processes(batch_size, processes)
        for split, needed in zip(passes, shares.count(batch_size).tolist(), strict=True):
            _check_pairs(split, needed, batch_size)
        self._passes, self._shares = passes, shares
        self._batch_size, self._rank, self._processes = batch_size, rank, processes
        self.epoch = 0
        self.first_step = 0
        """Where the next pass begins; the steps before it are skipped without reading anything."""
        self.pairs = passes[0].pairs
        """Pairs of the main store in one epoch, before the last incomplete batch is dropped."""
        self.left_out = sum(split.left_out for split in passes)
        """Pairs that no epoch uses (`Passes.left_out`), of all stores."""
        self.doubtful = sum(split.doubtful for split in passes)
        # The main store has a place in each period at least, so there are never more steps than these.
        steps = range((self.pairs + 1) * PERIOD // batch_size + 2)
        self._steps = bisect_right(steps, self.pairs, key=lambda number: self._taken(number)[0]) - 1

    def __len__(self) -> int:
        """Return the steps of an epoch, whatever `first_step` is."""
        return self._steps

    @property
    def dropped(self) -> int:
        """How many pairs of the main store an epoch leaves over, less than a batch; other ones each epoch."""
        return self.pairs - self._taken(self._steps)[0]

    def __iter__(self) -> Iterator[BatchRows]:
        whole, taken = self._taken(self._steps), self._taken(self.first_step)
        # The main store begins a pass with each epoch; the others go on where the last epoch left them.
        an_epoch = [self.pairs, *whole[1:]]
        sources = [
            _Source(split.read(self.epoch * an_epoch[store] + taken[store])) for store, split in enumerate(self._passes)
        ]
        share = self._batch_size // self._processes
        for step in range(self.first_step, self._steps):
            first = step * self._batch_size
            owners = self._shares.owners(first, self._batch_size)
            pairs = np.empty((self._batch_size, 2), dtype=np.int64)
            for store, source in enumerate(sources):
                mine = owners == store
                pairs[mine] = source.take(int(mine.sum()))
            start = self._rank * share
            samples, captions = np.ascontiguousarray(pairs[start : start + share].T)
            yield BatchRows(self.epoch, first + start, samples, captions)

    def _taken(self, steps: int) -> list[int]:
        """Return how many pairs of each store the first `steps` steps of an epoch take."""
        taken: list[int] = self._shares.count(steps * self._batch_size).tolist()
        return taken


class _Source:
    """Pairs on tap."""

    def __init__(self, windows: Iterator[NDArray[np.int64]]) -> None:
        self._windows, self._held = windows, np.empty((0, 2), dtype=np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        while len(self._held) < count:
            self._held = np.concatenate([self._held, next(self._windows)])
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def _check_processes(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        below, above = batch_size // processes * processes, -(-batch_size // processes) * processes
        raise TrainingError(
            f"train.batch_size is {batch_size}, which {processes} processes cannot share out evenly: each would need "
            f"as many pairs. Choose {f'{below} or {above}' if below else above}, or another number of processes."
        )


def _check_pairs(split: Passes, needed: int, batch_size: int) -> None:
    if not split.pairs and split.left_out:
        doubtful = f"train.clean_at_least leaves {split.doubtful} out, and " if split.doubtful else ""
        raise TrainingError(
            f"{split.where} has no pair to train on: of its {split.left_out} pairs, {doubtful}none has the features "
            f"of both teachers. Look at what failed with cusa-store info, or choose other teachers"
            f"{', or lower train.clean_at_least' if doubtful else ''}."
        )
    if not split.pairs:
        raise TrainingError(f"{split.where} has no pairs. Extract a data set whose split has captions.")
    if split.pairs < needed:
        part = "one batch of" if needed == batch_size else f"its share of {needed} in one batch of"
        doubtful = f" and leaves {split.doubtful} out by train.clean_at_least" if split.doubtful else ""
        raise TrainingError(
            f"{split.where} gives {split.pairs} pairs an epoch{doubtful}, fewer than {part} {batch_size}. "
            f"Lower {'either' if doubtful else 'train.batch_size'}."
        )
