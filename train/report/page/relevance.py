"""What a store knows about a few queries: their own answers in the data set, and which others are true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from stores import Store
from stores.columns import Column


class PairRelevance:
    """Own and true pairs of a caption and a sample, both as global rows, for some rows of either."""

    def __init__(self, store: Store, captions: Iterable[int], samples: Iterable[int]) -> None:
        self._owners = Column(store.captions["sample"])
        self._true: dict[int, set[int]] = defaultdict(set)
        table = store.relevance
        self.known = table is not None
        """Whether the source tells what is true beside its own pairs."""
        wanted = np.fromiter(captions, np.int64), np.fromiter(samples, np.int64)
        for batch in [] if table is None else table.to_batches():
            caption, sample = batch["caption"].to_numpy(), batch["sample"].to_numpy()
            here = np.isin(caption, wanted[0]) | np.isin(sample, wanted[1])
            for one, other in zip(caption[here].tolist(), sample[here].tolist(), strict=True):
                self._true[one].add(other)

    def kind(self, caption: int, sample: int) -> str:
        """Return "own" for a pair of the data set, "true" for a match that it lacks, else "other"."""
        if int(self._owners.numbers(np.array([caption]))[0]) == sample:
            return "own"
        return "true" if sample in self._true.get(caption, ()) else "other"
