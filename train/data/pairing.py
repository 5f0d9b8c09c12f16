"""Which sample each caption is trained with: its own, or by pairing.arrow another one, where pairs are made wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stores import Store
from stores.columns import Column
from stores.errors import DamagedStoreError
from stores.layout import Layout
from train.data.captions import Captions

Rows = NDArray[np.int64]


class Pairing:
    """The samples that a split's captions are paired with."""

    def __init__(self, store: Store, split: str) -> None:
        """Open the tables.

        Raises:
            StoreError: there is no such split, or pairing.arrow is damaged.
        """
        self._captions, self._shards = Captions(store), store.manifest.shards
        self._numbers = [number for number, shard in enumerate(self._shards) if shard.split == split]
        self._path, shards = Layout(store.root).pairing, store.shards(split)
        self._first, self._beyond = shards[0].first_sample, shards[-1].first_sample + shards[-1].samples
        table = store.pairing
        self._paired = None if table is None else Column(table["sample"])

    def owners(self, number: int) -> Rows:
        """Return the sample rows that the captions of the manifest's shard `number` are paired with: (captions,).

        Raises:
            DamagedStoreError: captions.arrow or pairing.arrow is damaged.
        """
        own = self._captions.owners(number)
        if self._paired is None:
            return own
        shard = self._shards[number]
        rows = np.arange(shard.first_caption, shard.first_caption + shard.captions)
        if len(rows) and rows[-1] >= len(self._paired):
            found, expected = len(self._paired), f"more than {rows[-1]}"
            raise DamagedStoreError("rows", path=self._path, found=found, expected=expected)
        paired = self._paired.numbers(rows)
        if len(paired) and not self._first <= paired.min() <= paired.max() < self._beyond:
            raise DamagedStoreError("samples of another split", path=self._path, where=f"shard {shard.name}")
        return paired

    def within_shards(self) -> bool:
        """Tell whether all captions of a sample lie in one shard: not where wrong pairs were made by caption."""
        if self._paired is None:
            return True
        samples = [np.unique(self.owners(number)) for number in self._numbers]
        return len(np.unique(np.concatenate(samples))) == sum(map(len, samples))

    def wrong(self) -> NDArray[np.bool_] | None:
        """Return which of the split's captions are not paired with their own sample, (captions,); None: all are."""
        if self._paired is None:
            return None
        return np.concatenate([self.owners(number) != self._captions.owners(number) for number in self._numbers])
