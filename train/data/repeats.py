"""Samples that show one picture, in one store or in several mixed ones: their pairs are no negatives of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores import Store
from stores.layout import Layout
from stores.tables import SAMPLES, open_batches

_DIGITS: Final = 16
"""Hexadecimal digits of a picture's SHA-256 that are compared: 64 bits mistake no pair of fewer than 10⁹ pictures."""


class Repeats:
    """Which samples of a split, numbered over all stores, show a picture that one of a lower number shows.

    Only these are remembered. While they are looked for some 32 bytes per sample are held, unless there is one store,
    whose manifest says that it has none.
    """

    def __init__(self, stores: Sequence[Store], split: str, first: int) -> None:
        """`first` is the number of the first store's first sample."""
        self._again = self._firsts = np.empty(0, dtype=np.int64)
        if len(stores) == 1 and _has_none(stores[0], split):
            return
        digests = np.concatenate([digest for store in stores for digest in _digests(store, split)])
        _, places, inverse = np.unique(digests, return_index=True, return_inverse=True)
        firsts = places[inverse]
        # Samples without an image, whose digest is 0 here, show nothing that is the same.
        again = np.flatnonzero((firsts != np.arange(len(digests))) & (digests != 0))
        self._again, self._firsts = again + first, firsts[again] + first

    def groups(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for samples (n,) the lowest number (n,) of one that shows the same picture: their own, if no other."""
        if not len(self._again):
            return numbers
        places = np.minimum(np.searchsorted(self._again, numbers), len(self._again) - 1)
        return np.where(self._again[places] == numbers, self._firsts[places], numbers)


def _has_none(store: Store, split: str) -> bool:
    shared = store.manifest.shared
    return shared is not None and split not in shared.get(split, {})


def _digests(store: Store, split: str) -> list[NDArray[np.uint64]]:
    batches = open_batches(Layout(store.root).samples, SAMPLES)
    own = [number for number, shard in enumerate(store.manifest.shards) if shard.split == split]
    columns = (batches.get_batch(number)["image_sha256"].to_pylist() for number in own)
    return [np.array([int((digest or "0")[:_DIGITS], 16) for digest in column], dtype=np.uint64) for column in columns]
