"""The deterministic stream: which (image, caption) pairs make up each batch of an epoch.

The order is a pure function of (seed, epoch) and is known before anything is read: shards are permuted, runs of them
form windows, and the pairs of a window are shuffled together. So every sample comes exactly once an epoch, a run can
go on at any step, and the number of loader workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from stores import Shard, Store, TrainingError

Pair = tuple[int, int]
"""A sample row and a caption row."""


class PairStream(Sampler[list[Pair]]):
    """Batches of (sample row, caption row) pairs of one split; set `epoch` before each pass."""

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        batch_size: int,
        captions: Literal["all", "one"],
        shuffle_shards: int,
        seed: int,
        usable_samples: NDArray[np.bool_],
        usable_captions: NDArray[np.bool_],
    ) -> None:
        self._shards = store.shards(split)
        self._sample_of = store.captions["sample"].to_numpy()
        self._usable = usable_captions & usable_samples[self._sample_of]
        self._batch_size, self._captions = batch_size, captions
        self._shuffle_shards, self._seed = shuffle_shards, seed
        self.epoch = 0
        rows = store.rows(split, "text")
        usable = rows[self._usable[rows]]
        self.left_out = len(rows) - len(usable)
        """Pairs that no epoch uses, since a teacher could not encode the image or the caption."""
        self.pairs = len(usable) if captions == "all" else len(np.unique(self._sample_of[usable]))
        """Pairs of one epoch, before the last incomplete batch is dropped."""
        if self.pairs < batch_size:
            raise TrainingError(
                f"The split {split!r} of {store.root} gives {self.pairs} pairs an epoch, fewer than one batch of "
                f"{batch_size}. Lower train.batch_size."
            )

    def __len__(self) -> int:
        return self.pairs // self._batch_size

    @property
    def dropped(self) -> int:
        """How many pairs an epoch leaves over, less than a batch; other ones each epoch."""
        return self.pairs % self._batch_size

    def __iter__(self) -> Iterator[list[Pair]]:
        waiting = np.empty((0, 2), dtype=np.int64)
        for window in self._windows():
            waiting = np.concatenate([waiting, window])
            whole = len(waiting) // self._batch_size * self._batch_size
            for batch in waiting[:whole].reshape(-1, self._batch_size, 2):
                yield [(int(sample), int(caption)) for sample, caption in batch]
            waiting = waiting[whole:]

    def _windows(self) -> Iterator[NDArray[np.int64]]:
        """Yield the shuffled pairs of each window of shards: (n, 2)."""
        random = np.random.default_rng((self._seed, self.epoch))
        order = random.permutation(len(self._shards))
        for start in range(0, len(order), self._shuffle_shards):
            rows = np.concatenate(
                [_captions(self._shards[number]) for number in order[start : start + self._shuffle_shards]]
            )
            rows = random.permutation(rows[self._usable[rows]])
            pairs = np.stack([self._sample_of[rows], rows], axis=1)
            if self._captions == "one":
                # The first caption of each image in a random order is a random caption, in a random order.
                pairs = pairs[np.sort(np.unique(pairs[:, 0], return_index=True)[1])]
            yield pairs


def _captions(shard: Shard) -> NDArray[np.int64]:
    return shard.first_caption + np.arange(shard.captions)
