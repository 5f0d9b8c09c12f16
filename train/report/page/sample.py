"""Which rows of a split a page shows, and what the store knows of them.

They are drawn with a fixed seed, so that the same models have one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores import Store
from stores.columns import Column

SEED: Final = 0
Places = NDArray[np.int64]
"""Positions within a split, which are the rows of its embeddings."""


class ImageCaptionPairs(NamedTuple):
    """Pairs of a split: n images and one caption of each, as places (n,) in the split."""

    images: Places
    captions: Places


def draw_pairs(store: Store, split: str, count: int) -> ImageCaptionPairs:
    """Return up to `count` images of a split, each once, with a caption of its own, in the order of their rows."""
    samples, captions = store.rows(split, "sample"), store.rows(split, "caption")
    random = np.random.default_rng(SEED)
    chosen = np.sort(random.choice(samples, min(count, len(samples)), replace=False))
    first, counts = (Column(store.samples[name]).numbers(chosen) for name in ("caption_first", "caption_count"))
    chosen, first, counts = chosen[counts > 0], first[counts > 0], counts[counts > 0]
    return ImageCaptionPairs(chosen - samples[0], first + random.integers(counts) - captions[0])


class PairRelevance:
    """Own and true pairs of a caption and a sample, both as global rows, for some rows of either."""

    def __init__(self, store: Store, captions: Sequence[int], samples: Sequence[int]) -> None:
        self._owners = Column(store.captions["sample"])
        self._true: set[tuple[int, int]] = set()
        table = store.relevance
        self.known = table is not None
        """Whether the source tells what is true beside its own pairs."""
        if table is not None:
            asked = {"caption": captions, "sample": samples}
            wanted = (pc.is_in(table[name], pa.array(rows, pa.int64())) for name, rows in asked.items())
            found = table.filter(pc.or_(*wanted)).to_pydict()
            self._true.update(zip(found["caption"], found["sample"], strict=True))

    def kind(self, caption: int, sample: int) -> str:
        """Return "own" for a pair of the data set, "true" for a match that it lacks, else "other"."""
        if int(self._owners.numbers(np.array([caption]))[0]) == sample:
            return "own"
        return "true" if (caption, sample) in self._true else "other"
