"""Which sample each caption is trained with: its own, or by a table another one. Noise is a table like any other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stores import Store
from train.data.captions import Captions
from train.data.seeds import derived_seed

Rows = NDArray[np.int64]


class Pairing:
    """The samples of a split's captions; `table` gives for each sample of the split the one that its captions go to."""

    def __init__(self, captions: Captions, first: int = 0, table: Rows | None = None) -> None:
        """`table` is (samples,) global rows, of the samples from row `first` on; None: captions stay where they are."""
        self._captions, self._first, self._table = captions, first, table

    def owners(self, number: int) -> Rows:
        """Return the sample rows of the captions of the manifest's shard `number`: (captions,).

        Raises:
            StoreError: captions.arrow is damaged.
        """
        owners = self._captions.owners(number)
        return owners if self._table is None else self._table[owners - self._first]


def noisy_pairing(store: Store, split: str, share: float, seed: int) -> Pairing:
    """Return a split's pairs with a share of the images permuted among themselves, all captions of an image together.

    That is how wrong pairs are made to study them (L2RM, 2403.05105; by image): a function of the seed, the number of
    images and the share. Images that the permutation leaves in place keep their captions.
    """
    captions, rows = Captions(store), store.rows(split, "sample")
    if not share:
        return Pairing(captions)
    random = np.random.default_rng(derived_seed(seed, len(rows)))
    chosen = random.permutation(len(rows))[: int(share * len(rows))]
    table = rows.copy()
    table[chosen] = rows[random.permutation(chosen)]
    return Pairing(captions, int(rows[0]), table)
