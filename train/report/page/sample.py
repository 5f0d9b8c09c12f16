"""Which rows of a split a page shows: drawn with a fixed seed, so that the same models have one page."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
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
