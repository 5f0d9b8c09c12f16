"""Passes over the pairs of one split: each an order of its own, known before anything is read, and skipped by counting.

Shards are permuted, runs of them form windows, and the pairs of a window are shuffled together. Each window draws from
a generator of its own, so a pass can begin at any pair without making the windows before it. In memory lie one window,
a count a shard (8 bytes) and the rows without features (8 bytes each); nothing else grows with the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stores import ParameterError, Store
from train.data.pairing import Pairing


class Unusable(NamedTuple):
    """Sorted global rows whose pairs are left out."""

    samples: NDArray[np.int64]
    captions: NDArray[np.int64]
    doubtful: int = 0
    """How many of the captions are those of pairs less likely to be right than is asked for."""


class Passes:
    """The usable (sample row, caption row) pairs of a split, in one order after another."""

    def __init__(
        self,
        store: Store,
        split: str,
        unusable: Unusable,
        pairing: Pairing,
        *,
        captions: Literal["all", "one"],
        shuffle_shards: int,
        seed: tuple[int, int],
        offsets: tuple[int, int] = (0, 0),
        arranged: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    ) -> None:
        """Count the pairs.

        Args:
            store: where they are.
            split: which of them.
            unusable: rows whose pairs are left out.
            pairing: which sample each caption goes with.
            captions: every pair once a pass, or every sample once with a caption drawn anew each pass.
            shuffle_shards: how many shards make a window.
            seed: the run's and the store's number.
            offsets: what is added to sample rows and to caption rows, to tell them from other stores' rows.
            arranged: brings the shuffled pairs (n, 2) of a window into another order; None: they stay as they are.

        Raises:
            StoreError: there is no such split, or captions.arrow is damaged.
            ParameterError: one caption a sample is asked for, and a sample's captions lie in several shards.
        """
        self.where = f"The split {split!r} of {store.root}"
        store.shards(split)  # refuses a split that is not there
        self._shards = store.manifest.shards
        self._numbers = np.array([number for number, shard in enumerate(self._shards) if shard.split == split])
        self._pairing, self._unusable = pairing, unusable
        self._one, self._shuffle_shards = captions == "one", shuffle_shards
        if self._one and not pairing.within_shards():
            # Which of its captions is drawn in which window could only be told by keeping all of them in memory.
            expected = "all: wrong pairs made by caption spread a sample's captions over shards (by image they do not)"
            raise ParameterError(where="train.captions", found=captions, expected=expected)
        self._seed, self._offsets, self._arranged = seed, np.array(offsets), arranged
        counted = np.array([self._count(number) for number in self._numbers], dtype=np.int64)
        self._counts = counted[:, 0]
        self.pairs = int(self._counts.sum())
        """Pairs of one pass."""
        self.left_out = int(counted[:, 1].sum())
        """Pairs that no pass uses: the doubtful ones, and those whose image or caption a teacher could not encode."""
        self.doubtful = unusable.doubtful

    def read(self, position: int) -> Iterator[NDArray[np.int64]]:
        """Yield pairs for ever, (n, 2) a window, from a position in the endless row of passes; pass 0 begins at 0."""
        number, skipped = divmod(position, self.pairs)
        while True:
            yield from self._pass(number, skipped)
            number, skipped = number + 1, 0

    def _pass(self, number: int, skipped: int) -> Iterator[NDArray[np.int64]]:
        order = self._random(number, 0).permutation(len(self._numbers))
        for window, start in enumerate(range(0, len(order), self._shuffle_shards), 1):
            chosen = order[start : start + self._shuffle_shards]
            size = int(self._counts[chosen].sum())
            if skipped < size:
                pairs = self._window(self._numbers[chosen], self._random(number, window)) + self._offsets
                yield (self._arranged(pairs) if self._arranged else pairs)[skipped:]
            skipped = max(0, skipped - size)

    def _random(self, number: int, window: int) -> np.random.Generator:
        # Always as many numbers: numpy's seeds are padded with zeros, so (1, 2) and (1, 2, 0) are the same one.
        return np.random.default_rng((*self._seed, number, window))

    def _window(self, numbers: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        pairs = random.permutation(np.concatenate([self._usable(int(number)) for number in numbers]))
        # The first caption of each image in a random order is a random caption, in a random order.
        return pairs[np.sort(np.unique(pairs[:, 0], return_index=True)[1])] if self._one else pairs

    def _count(self, number: int) -> tuple[int, int]:
        """Return how many pairs a pass takes of a shard, and how many it leaves out."""
        captions = self._shards[number].captions
        if not self._one and not len(self._unusable.samples) and not len(self._unusable.captions):
            return captions, 0  # by the manifest alone
        usable = self._usable(number)
        return len(np.unique(usable[:, 0])) if self._one else len(usable), captions - len(usable)

    def _usable(self, number: int) -> NDArray[np.int64]:
        shard, owners = self._shards[number], self._pairing.owners(number)
        rows = shard.first_caption + np.arange(shard.captions)
        unusable = _among(rows, self._unusable.captions) | _among(owners, self._unusable.samples)
        return np.stack([owners, rows], axis=1)[~unusable]


def _among(rows: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of `rows` are among `some`, which are sorted."""
    places = np.searchsorted(some, rows)
    found = np.zeros(len(rows), dtype=bool)
    inside = places < len(some)
    found[inside] = some[places[inside]] == rows[inside]
    return found
