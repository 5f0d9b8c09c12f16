"""Which class each sample is of, by number across the stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores import Store
from train.data.numbers import Numbers


class Classes:
    """The classes of samples; each store's are read when first asked for, and take 8 bytes a sample of it."""

    def __init__(self, stores: Sequence[Store], samples: Numbers, numbers: Numbers) -> None:
        """Keep the numbers of the split's samples, and those of all classes."""
        self._stores, self._samples, self.numbers = stores, samples, numbers

    @cached_property
    def _rows(self) -> list[NDArray[np.int64]]:
        return [class_rows(store) for store in self._stores]

    @cached_property
    def complete(self) -> bool:
        """Whether every sample of the split has a class."""
        samples = self._samples.first + np.arange(len(self._samples))
        return all(bool((self._rows[store][rows] >= 0).all()) for store, _, rows in self._samples.by_store(samples))

    def of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each of `samples` (n,): (n,); below zero, and its own, where it has none."""
        found = np.empty(len(samples), dtype=np.int64)
        for store, mine, rows in self._samples.by_store(samples):
            own = self._rows[store][rows]
            found[mine] = np.where(own < 0, -1 - samples[mine], own + self.numbers.offsets[store])
        return found


def class_rows(store: Store) -> NDArray[np.int64]:
    """Return the row of each sample's class: (samples,); −1 where it has none."""
    if store.classes is None:
        return np.full(len(store.samples), -1)
    names = store.classes["name"].combine_chunks()
    places = pc.index_in(store.samples["label"].cast(pa.string()), value_set=names)
    rows: NDArray[np.int64] = pc.fill_null(places, -1).to_numpy().astype(np.int64)
    return rows
