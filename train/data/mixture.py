"""One split of several stores as one: rows numbered across the stores, what belongs to them found by number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stores import Features, Modality, Store, TrainingError
from train.data.captions import Captions
from train.data.repeats import Repeats


class Numbers:
    """Numbers of one modality's rows: a split's rows lie on end over the stores, the first store's as they are.

    A number is the row plus its store's offset.
    """

    def __init__(self, stores: Sequence[Store], split: str, modality: Modality) -> None:
        shards = [store.shards(split) for store in stores]
        counts = [sum(shard.rows(modality) for shard in split_shards) for split_shards in shards]
        firsts = np.array([split_shards[0].first_row(modality) for split_shards in shards])
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


class MixedFeatures:
    """One teacher's features of all stores, found by number."""

    def __init__(self, features: Sequence[Features], numbers: Numbers) -> None:
        self._features, self.numbers, self.dim = features, numbers, features[0].dim

    def gather(self, numbers: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the features of `numbers` (n,), in their order: (n, dim) float16."""
        owners = self.numbers.owners(numbers)
        gathered = np.empty((len(numbers), self.dim), dtype=np.float16)
        for store, (features, offset) in enumerate(zip(self._features, self.numbers.offsets, strict=True)):
            mine = owners == store
            if mine.all():
                return features.gather(numbers - offset)
            gathered[mine] = features.gather(numbers[mine] - offset)
        return gathered


class Mixture:
    """The images, captions and two teachers' features of one split of several stores, found by number.

    A pickle carries paths alone; a forked process opens what it reads for itself.
    """

    def __init__(self, stores: Sequence[Store], split: str, slugs: tuple[str, str]) -> None:
        self.samples, self.captions = Numbers(stores, split, "image"), Numbers(stores, split, "text")
        self._images = [store.images for store in stores]
        self._texts = [Captions(store) for store in stores]
        image, text = ([store.features(slug) for store in stores] for slug in slugs)
        self.features = (MixedFeatures(image, self.samples), MixedFeatures(text, self.captions))
        self.repeats = Repeats(stores, split, self.samples.first)

    def image(self, number: int) -> bytes:
        """Return the encoded image file of a sample."""
        store = int(self.samples.owners(number))
        return self._images[store][number - self.samples.offsets[store]]

    def text(self, number: int) -> str:
        """Return the text of a caption."""
        store = int(self.captions.owners(number))
        return self._texts[store].text(number - self.captions.offsets[store])


def opened(main: Store, others: Iterable[str], slugs: tuple[str, str]) -> list[Store]:
    """Return the main store and the others, opened.

    Raises:
        TrainingError: a store comes twice, or not all have the features of the very same teachers.
        StoreError: one is absent or damaged, or lacks a teacher.
    """
    stores = [main]
    for path in others:
        if Path(path).resolve() in [store.root.resolve() for store in stores]:
            raise TrainingError(
                f"train.mix_in names {path}, which is the main store or was named before. "
                f"Each store comes once: raise its share instead."
            )
        stores.append(Store.open(path))
    for slug, modality in zip(slugs, ("image", "text"), strict=True):
        for store in stores:
            _check_teacher(main, store, slug, modality)
    return stores


def _check_teacher(main: Store, store: Store, slug: str, modality: str) -> None:
    expected, found = main.features(slug), store.features(slug)
    if found.modality != modality:
        raise TrainingError(
            f"The teacher {slug} of {store.root} encodes {found.modality}s, but teachers.{modality} names it. "
            f"Choose a teacher of {modality}s."
        )
    if (found.fingerprint, found.dim) != (expected.fingerprint, expected.dim):
        raise TrainingError(
            f"The teacher {slug} of {store.root} ({found.dim} numbers, fingerprint {found.fingerprint[:12]}) is not "
            f"that of {main.root} ({expected.dim} numbers, fingerprint {expected.fingerprint[:12]}): other weights, "
            f"preprocessing or precision, so their similarities cannot be compared. Extract both stores with the same."
        )
