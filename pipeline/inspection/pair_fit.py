"""How well the captions of a split fit the images that they are paired with, by teachers of one modality each.

1. text: what is said of the images that are nearest to a caption's image, is it near to the caption? For each of them
   the nearest of its captions counts; the mean over them, in standard deviations above that over random images.
2. image: are the images of the nearest captions near to the caption's image? The mean likewise.
3. The score is the sum of both. How it was chosen stands in docs/inspection.md.

All goes sample by sample: memory does not grow with the split but for a few numbers a caption.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores import Features, Store
from stores.columns import Column
from stores.console import progress_bar

RANDOM: Final = 256
"""Random images that each pair's similarities are measured against."""
_BLOCK: Final = 512
"""Samples whose neighbours are searched together."""
_LEAST: Final = 1e-6
Rows = NDArray[np.int64]
Values = NDArray[np.float32]


class PairFit:
    """The pairs of a split, grouped by image, and what two teachers say of them."""

    def __init__(self, store: Store, slugs: tuple[str, str], split: str, width: int) -> None:
        """Open the features and indices of an image and a text teacher, `slugs`; `width` neighbours are looked at."""
        self._samples, self.captions = store.rows(split, "sample"), store.rows(split, "caption")
        self._images, self._texts = (store.features(slug) for slug in slugs)
        self._by_image, self._by_text = (store.index(slug, split) for slug in slugs)
        self._split, self._width = split, min(width, len(self._samples) - 1)
        pairing = store.captions if store.pairing is None else store.pairing
        self.paired = Column(pairing["sample"]).numbers(self.captions)
        """(captions,), the sample of each."""
        self._order = np.argsort(self.paired, kind="stable")
        self._bounds = np.searchsorted(self.paired[self._order], np.append(self._samples, self._samples[-1] + 1))
        random = np.random.default_rng(0).choice(self._samples, min(RANDOM, len(self._samples)), replace=False)
        self._random = np.array([row for row in random if len(self._of(row))])

    def scores(self) -> tuple[Values, Values]:
        """Return text and image, (captions,) each; NaN where a teacher failed, or nothing is near."""
        found = np.full((2, len(self.captions)), np.nan, np.float32)
        texts, starts = self._said(self._random)
        images = self._vectors(self._images, self._random)
        with progress_bar() as progress:
            task = progress.add_task(f"pairs of {self._split}", total=len(self._samples), note="")
            for start in range(0, len(self._samples), _BLOCK):
                block = self._samples[start : start + _BLOCK]
                near = self._by_image.search(self._images.gather(block), self._width + 1)[1]
                for sample, others in zip(block, near, strict=True):
                    places = self._of(sample)
                    if len(places):
                        others = others[(others >= 0) & (others != sample)][: self._width]
                        found[0, places] = self._text(places, others, texts, starts)
                        found[1, places] = self._image(sample, places, images)
                progress.advance(task, len(block))
        return found[0], found[1]

    def _text(self, places: Rows, others: Rows, random: Values, starts: Rows) -> Values:
        captions = self._vectors(self._texts, self.captions[places])
        said, bounds = self._said(others)
        if not len(bounds):
            return np.full(len(places), np.nan, np.float32)
        near = np.maximum.reduceat(captions @ said.T, bounds, axis=1)
        far = np.maximum.reduceat(captions @ random.T, starts, axis=1)
        return _standardised(near.mean(axis=1), far, captions)

    def _image(self, sample: int, places: Rows, random: Values) -> Values:
        captions = self._texts.gather(self.captions[places])
        # A caption's nearest are often its own image's other captions, which say nothing of the image.
        near = self._by_text.search(captions, self._width + len(places))[1]
        image = self._vectors(self._images, np.array([sample]))
        far = np.repeat((random @ image.T).T, len(places), axis=0)
        means = np.full(len(places), np.nan, np.float32)
        for row, found in enumerate(near):
            owners = self.paired[found[found >= 0] - self.captions[0]]
            others = owners[owners != sample][: self._width]
            if len(others) and image.any():
                means[row] = (self._vectors(self._images, others) @ image[0]).mean()
        return _standardised(means, far, captions)

    def _of(self, sample: int) -> Rows:
        """Return the places among the split's captions of those that are paired with a sample."""
        place = sample - self._samples[0]
        return self._order[self._bounds[place] : self._bounds[place + 1]]

    def _said(self, samples: Rows) -> tuple[Values, Rows]:
        """Return the features of all captions of `samples`, and where those of each that has some begin."""
        runs = [run for run in map(self._of, samples) if len(run)]
        starts = np.cumsum([0, *map(len, runs[:-1])]) if runs else np.empty(0, np.int64)
        rows = self.captions[np.concatenate(runs)] if runs else np.empty(0, np.int64)
        return self._vectors(self._texts, rows), starts

    @staticmethod
    def _vectors(features: Features, rows: Rows) -> Values:
        return features.gather(rows).astype(np.float32)


def _standardised(near: Values, far: Values, vectors: NDArray[np.floating]) -> Values:
    """Return how many standard deviations `near` (n,) lies above the means of `far` (n, random); NaN of failed rows."""
    scores = (near - far.mean(axis=1)) / np.maximum(far.std(axis=1), _LEAST)
    return np.where(vectors.any(axis=1), scores, np.float32(np.nan))
