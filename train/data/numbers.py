"""Rows numbered across several stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stores import Store
from stores.modality import Level


class Numbers:
    """Numbers of one level's rows: a split's rows lie on end over the stores, the first store's as they are.

    A number is the row plus its store's offset. Classes are of no split: all of a store's are there.
    """

    def __init__(self, stores: Sequence[Store], split: str, level: Level) -> None:
        self.level = level
        shards = [store.manifest.shards_of(level) if level == "class" else store.shards(split) for store in stores]
        counts = [sum(shard.rows(level) for shard in own) for own in shards]
        firsts = np.array([own[0].first_row(level) if own else 0 for own in shards])
        self._bounds = firsts[0] + np.cumsum([0, *counts])
        self.offsets: list[int] = (self._bounds[:-1] - firsts).tolist()
        """What each store adds to its rows."""

    def __len__(self) -> int:
        return int(self._bounds[-1] - self._bounds[0])

    @property
    def first(self) -> int:
        """The lowest number."""
        return int(self._bounds[0])

    def owners(self, numbers: NDArray[np.int64] | int) -> NDArray[np.intp]:
        """Return the stores that the numbers belong to."""
        return np.asarray(np.searchsorted(self._bounds, numbers, side="right") - 1)

    def by_store(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
        """Yield of each store that some numbers (n,) belong to which do, (n,) bool, and these as its own rows."""
        owners = self.owners(numbers)
        for store in np.unique(owners).tolist():
            mine = owners == store
            yield store, mine, numbers[mine] - self.offsets[store]
