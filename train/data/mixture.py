"""One split of several stores as one: rows numbered across the stores, what belongs to them found by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inputs import Input, Stored
from stores import Store, TrainingError
from stores.features import FeatureRows
from stores.modality import Level
from train.data.captions import Captions
from train.data.classes import Classes
from train.data.numbers import Numbers
from train.data.repeats import Repeats


class MixedFeatures:
    """Features of one name of all stores, of samples or captions, found by number."""

    def __init__(self, features: Sequence[FeatureRows], numbers: Numbers) -> None:
        self._features, self.numbers, self.level = features, numbers, numbers.level
        self.shape, self.dtype = features[0].shape, features[0].dtype
        self._flags: list[NDArray[np.bool_]] | None = None

    def gather(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Return the features of `numbers` (n,), in their order: (n, …)."""
        gathered = np.empty((len(numbers), *self.shape), dtype=self.dtype)
        for store, mine, rows in self.numbers.by_store(numbers):
            if len(rows) == len(numbers):
                return self._features[store].gather(rows)
            gathered[mine] = self._features[store].gather(rows)
        return gathered

    @property
    def share(self) -> float:
        """Which share of all rows has features."""
        flags = np.concatenate([features.valid for features in self._features])
        return float(flags.mean()) if len(flags) else 1.0

    def present(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which of `numbers` (n,) have features, (n,) bool; None where all of all stores have."""
        if self._flags is None:
            flags = [features.valid for features in self._features]
            self._flags = [] if all(valid.all() for valid in flags) else flags
        if not self._flags:
            return None
        present = np.empty(len(numbers), dtype=bool)
        for store, mine, rows in self.numbers.by_store(numbers):
            present[mine] = self._flags[store][rows]
        return present


class Mixture:
    """The images, captions and features of one split of several stores, found by number.

    A pickle carries paths alone; a forked process opens what it reads for itself.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        inputs: Mapping[str, Input],
        slugs: Mapping[str, str] | None = None,
    ) -> None:
        """Open what the `inputs` of a student read, and the teachers' features, whose folders `slugs` names.

        Raises:
            StoreError: a store lacks features.
            TrainingError: an input reads features of another level.
        """
        self.samples, self.captions = Numbers(stores, split, "sample"), Numbers(stores, split, "caption")
        self.classes = Classes(stores, self.samples, Numbers(stores, split, "class"))
        self._images = [store.images for store in stores]
        self._texts = [Captions(store) for store in stores]
        self.repeats = Repeats(stores, split, self.samples.first)
        self.teachers = {
            modality: self._mixed(slug, stores, [store.features(slug) for store in stores])
            for modality, slug in (slugs or {}).items()
        }
        self.features: dict[str, MixedFeatures] = {}
        """What the inputs read, by name."""
        for modality, given in inputs.items():
            if isinstance(given, Stored):
                (name,) = given.reads
                self.features[name] = features = self._mixed(name, stores, [given.features(store) for store in stores])
                if features.level != given.level:
                    raise TrainingError(
                        f"The student's {modality} is of each {given.level}, but the features {name!r} that it reads "
                        f"are of each {features.level}."
                    )

    def numbers(self, level: Level) -> Numbers:
        """Return the numbers of a level's rows."""
        return {"sample": self.samples, "caption": self.captions, "class": self.classes.numbers}[level]

    def image(self, number: int) -> bytes:
        """Return the encoded image file of a sample; nothing where it has none."""
        store = int(self.samples.owners(number))
        return self._images[store][number - self.samples.offsets[store]]

    def pictured(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which samples (n,) have an image; None where every sample of every store has one."""
        if all(images.complete for images in self._images):
            return None
        found = np.empty(len(numbers), dtype=bool)
        for store, mine, rows in self.samples.by_store(numbers):
            found[mine] = self._images[store].present(rows)
        return found

    def text(self, number: int) -> str:
        """Return the text of a caption."""
        store = int(self.captions.owners(number))
        return self._texts[store].text(number - self.captions.offsets[store])

    def stored(self, name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Return stored features of rows of their level, (n, …); zeros for numbers below zero, which are no row."""
        features = self.features[name]
        if (known := numbers >= 0).all():
            return features.gather(numbers)
        found = np.zeros((len(numbers), *features.shape), features.dtype)
        found[known] = features.gather(numbers[known])
        return found

    def present(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which of these rows have stored features, (n,); None where no row of the split lacks them."""
        features = self.features[name]
        # Not by these rows: each process must gather the same of its share.
        if features.level != "class" or self.classes.complete:
            return features.present(numbers)
        found = (known := numbers >= 0).copy()
        some = features.present(numbers[known])
        found[known] = True if some is None else some
        return found

    def _mixed(self, name: str, stores: Sequence[Store], features: Sequence[FeatureRows]) -> MixedFeatures:
        first = features[0]
        made_by = stores[0].manifest.teachers.get(name)
        for store, other in zip(stores[1:], features[1:], strict=True):
            if (other.level, other.shape) != (first.level, first.shape):
                said, expected = (f"{' × '.join(map(str, one.shape))} for each {one.level}" for one in (other, first))
                raise TrainingError(
                    f"the features {name}", path=store.root, found=said, expected=f"{expected}, as {stores[0].root} has"
                )
            if made_by is not None:
                _check_teacher(stores[0], store, name, made_by.modality)
        return MixedFeatures(features, self.numbers(first.level))


def opened(main: Store, others: Iterable[str], slugs: Mapping[str, str]) -> list[Store]:
    """Return the main store and the others, opened.

    Raises:
        TrainingError: a store comes twice, or not all have the features of the very same teachers.
        StoreError: one is absent or damaged, or lacks a teacher.
    """
    stores = [main]
    for path in others:
        if Path(path).resolve() in [store.root.resolve() for store in stores]:
            advice = "Each store comes once: raise its share instead."
            raise TrainingError("is the main store or named twice", where="train.mix_in", path=path, advice=advice)
        stores.append(Store.open(path))
    for modality, slug in slugs.items():
        for store in stores:
            _check_teacher(main, store, slug, modality)
    return stores


def _check_teacher(main: Store, store: Store, slug: str, modality: str) -> None:
    expected, found = main.features(slug), store.features(slug)
    if found.modality != modality:
        where, wanted = f"teachers.{modality}", f"a teacher of {modality}s"
        raise TrainingError(slug, path=store.root, where=where, found=found.modality, expected=wanted)
    if (found.fingerprint, found.dim) != (expected.fingerprint, expected.dim):
        raise TrainingError(
            f"The teacher {slug} of {store.root} ({found.dim} numbers, fingerprint {found.fingerprint[:12]}) is not "
            f"that of {main.root} ({expected.dim} numbers, fingerprint {expected.fingerprint[:12]}): other weights, "
            f"preprocessing or precision, so their similarities cannot be compared. Extract both stores with the same."
        )
