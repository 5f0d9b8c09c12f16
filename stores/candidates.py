"""Pairs of samples that may share a caption, and how near the teachers find them.

Teachers know one modality each, so that a caption c of sample i belongs to the image of sample j shows in two ways:

- *text*: c says what a caption of j says: the similarity of the nearest captions of i and j;
- *image*: j shows what i shows: the similarity of the two images.

Both are symmetric in i and j, so pairs of samples are looked at once, as (low, high). Candidates are whatever the index
of either teacher finds near; the evidence is then taken from the features, since an index may only estimate it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.columns import Column
from stores.features import Features
from stores.index import Index
from stores.store import Store

BLOCK: Final = 1024
"""Samples whose neighbours are searched together."""
_ELEMENTS: Final = 1 << 22
"""Feature values that are gathered at once."""

PAIR: Final = np.dtype(
    [(name, np.int64) for name in ("low", "high", "low_caption", "high_caption")]
    + [(name, np.float32) for name in ("text", "image")]
)
"""A pair of samples; of its captions those two that are nearest, and the similarities of these and of the images."""

Rows = NDArray[np.int64]
Values = NDArray[np.float32]
Pairs = NDArray[Any]
"""(n,) of `PAIR`."""


@dataclass(frozen=True)
class Runs:
    """Runs of caption rows: `count` (n,) rows from `first` (n,); no run is empty."""

    first: Rows
    count: Rows

    def __getitem__(self, places: Rows) -> Runs:
        return Runs(self.first[places], self.count[places])

    def rows(self) -> Rows:
        """Return (n, longest) rows; a shorter run repeats its last."""
        places = np.arange(self.count.max())
        return self.first[:, None] + np.minimum(places, self.count[:, None] - 1)


class Evidence:
    """What two teachers of a store, one of images and one of texts, say about pairs of samples."""

    def __init__(self, store: Store, image_slug: str, text_slug: str) -> None:
        self.image_slug, self.text_slug = image_slug, text_slug
        self._images: Features = store.features(self.image_slug)
        self._texts: Features = store.features(self.text_slug)
        self._first, self._count = (Column(store.samples[name]) for name in ("caption_first", "caption_count"))
        self.owners = Column(store.captions["sample"])

    def captions(self, samples: Rows) -> Runs:
        """Return the captions of `samples` (n,)."""
        return Runs(self._first.numbers(samples), self._count.numbers(samples))

    def image_similarity(self, one: Rows, other: Rows) -> Values:
        """Return the cosine of the images of samples `one` (n,) and `other` (n,); NaN where a teacher failed."""
        step = max(1, _ELEMENTS // self._images.dim)
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(one), step):
            ours, theirs = (_gathered(self._images, rows[start : start + step]) for rows in (one, other))
            failed = ~(ours.any(axis=1) & theirs.any(axis=1))
            parts.append(np.where(failed, np.float32(np.nan), np.einsum("nd,nd->n", ours, theirs)))
        return np.concatenate(parts)

    def nearest_captions(self, one: Runs, other: Runs) -> tuple[Values, Rows, Rows]:
        """Return the cosine of the two nearest captions of n pairs of runs, NaN where all failed, and their rows."""
        similarity = np.empty(len(one.first), np.float32)
        found = np.empty((2, len(one.first)), np.int64)
        for places in _chunks(one.count + other.count, _ELEMENTS // self._texts.dim):
            ours, theirs = one[places].rows(), other[places].rows()
            a, b = (_gathered(self._texts, rows) for rows in (ours, theirs))
            products = a @ b.transpose(0, 2, 1)
            for failed in (~np.any(a, axis=2, keepdims=True), ~np.any(b, axis=2)[:, None, :]):
                products = np.where(failed, -np.inf, products)
            best = products.reshape(len(places), -1).argmax(axis=1)
            each = np.arange(len(places))
            of_one, of_other = np.divmod(best, theirs.shape[1])
            similarity[places] = products[each, of_one, of_other]
            found[:, places] = ours[each, of_one], theirs[each, of_other]
        return np.where(np.isfinite(similarity), similarity, np.float32(np.nan)), found[0], found[1]

    def pairs(self, low: Rows, high: Rows) -> Pairs:
        """Return the evidence about the samples `low` (n,) and `high` (n,), without pairs that a teacher failed on."""
        found = np.empty(len(low), PAIR)
        found["low"], found["high"], found["image"] = low, high, self.image_similarity(low, high)
        nearest = self.nearest_captions(self.captions(low), self.captions(high))
        found["text"], found["low_caption"], found["high_caption"] = nearest
        known: Pairs = found[np.isfinite(found["text"]) & np.isfinite(found["image"])]
        return known


class Candidates:
    """The samples that share a neighbourhood in one split, by either teacher."""

    def __init__(self, store: Store, evidence: Evidence, split: str, width: int) -> None:
        self._evidence, self._width = evidence, width
        self._by_image, self._by_text = (
            (store.features(slug), store.index(slug, split)) for slug in (evidence.image_slug, evidence.text_slug)
        )

    def of(self, samples: Rows) -> tuple[Rows, Rows]:
        """Return the candidates that some of the consecutive `samples` are in: low and high (n,), each pair once."""
        ours, theirs = _searched(*self._by_image, samples, self._width + 1)
        runs = self._evidence.captions(samples)
        if not runs.count.any():
            return np.empty(0, np.int64), np.empty(0, np.int64)
        captions = np.arange(runs.first[0], runs.first[-1] + runs.count[-1])
        # A caption's nearest are often its own sample's other captions; they take no candidate's place.
        own = min(int(runs.count.max()), self._width)
        near, far = _searched(*self._by_text, captions, self._width + own)
        one = np.concatenate([ours, np.repeat(samples, runs.count)[near - captions[0]]])
        other = np.concatenate([theirs, self._evidence.owners.numbers(far)])
        pairs = np.unique(np.sort(np.stack([one, other], axis=1)[one != other], axis=1), axis=0)
        low, high = pairs[(self._evidence.captions(pairs.ravel()).count > 0).reshape(-1, 2).all(axis=1)].T
        return low, high


def _gathered(features: Features, rows: Rows) -> Values:
    """Return the features of `rows` of any shape: (*rows.shape, dim) float32."""
    return features.gather(rows.ravel()).astype(np.float32).reshape(*rows.shape, features.dim)


def _searched(features: Features, index: Index, rows: Rows, width: int) -> tuple[Rows, Rows]:
    """Return the neighbours of `rows` as flat (row, neighbour); rows that the teacher failed on have none."""
    queries = features.gather(rows)
    good = queries.any(axis=1)
    _, found = index.search(queries[good], width)
    kept = found.ravel() >= 0
    return np.repeat(rows[good], width)[kept], found.ravel()[kept]


def _chunks(sizes: Rows, budget: int) -> Iterator[Rows]:
    """Yield places of `sizes` (n,), like with like, so that a chunk's number times its largest size fits `budget`."""
    order = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(order):
        ahead = order[start : start + budget]
        fits = int(np.searchsorted(sizes[ahead] * np.arange(1, len(ahead) + 1), budget, side="right"))
        yield order[start : start + max(1, fits)]
        start += max(1, fits)
