"""A store as it is served: which models search it, its indices, and what is found.

Shapes: n rows, D a feature's dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.inspection.teachers import cross_modal_slugs, default_slug
from stores import CusaError, Store, StoreError
from stores.columns import Column
from stores.digests import file_state
from stores.features import Features
from stores.index import Index
from stores.layout import Layout
from stores.modality import Level

_BLOCK: Final = 65_536
"""Rows of one label that are compared at once."""
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarities and global rows, (n,) each, the most similar first."""


class ServedStore:
    """One state of a store: a run of cusa-extract makes another (see `Served`)."""

    def __init__(self, store: Store, first: str | None) -> None:
        """Serve a store; `first` is the model that is asked where none is named.

        Raises:
            StoreError: no teacher's features can be searched, or not those of the first model.
        """
        self.store = store
        self.models: dict[str, dict[str, str]] = {}
        """The folders of each model's features, by its name and by modality."""
        searched = store.manifest.indices  # what has none is no vector: regions
        for slug, teacher in sorted(
            (slug, found) for slug, found in store.manifest.teachers.items() if slug in searched
        ):
            self.models.setdefault(teacher.spec, {})[teacher.modality] = slug
        self.first = self._known(first) if first else self._default()
        self._lock = threading.Lock()
        self._indices: dict[tuple[str, str], Index] = {}
        self._rows_of_label = lru_cache(32)(self._find_label)

    def towers(self, model: str | None) -> Mapping[str, str]:
        """Return the folders of a model's features by modality.

        Raises:
            CusaError: the store has no features of such a model.
        """
        return self.models[self._known(model or self.first)]

    def slug(self, model: str | None, modality: str) -> str:
        """Return the folder of a model's features of a modality.

        Raises:
            CusaError: it has none.
        """
        towers = self.towers(model)
        if modality not in towers:
            others = [name for name, held in self.models.items() if modality in held]
            advice = (
                f"Ask one of: {', '.join(others)}." if others else "Run cusa-extract --teacher run:… or open-clip:…"
            )
            raise CusaError(f"has no tower for {modality}s", where=model or self.first, advice=advice)
        return towers[modality]

    def features(self, slug: str) -> Features:
        """Return the features in a folder, opened once."""
        with self._lock:
            return self._features[slug]

    def search(
        self, slug: str, vector: NDArray[np.float32], count: int, split: str | None = None, label: str | None = None
    ) -> Found:
        """Return the `count` rows nearest to a query (D,) by its cosine; of one split or of one label if so asked.

        Rows of a label are all compared; else the splits' indices are searched.

        Raises:
            StoreError: there is no such split, or the query has another dimension.
        """
        splits = self.store.manifest.splits if split is None else (split,)
        features = self.features(slug)
        if vector.shape != (features.dim,):
            raise CusaError("numbers of the query", where=slug, found=vector.size, expected=features.dim)
        found = [
            self._among(features, vector, self._rows_of_label(label, one, features.level))
            if label is not None
            else self.index(slug, one).search(vector[None], count)
            for one in splits
        ]
        similarity, rows = (np.concatenate([part[side].ravel() for part in found]) for side in (0, 1))
        similarity, rows = similarity[rows >= 0], rows[rows >= 0]
        order = np.lexsort((rows, -similarity))[:count]
        # Rounded features may have a length a little above 1.
        return similarity[order].clip(max=1), rows[order]

    def index(self, slug: str, split: str) -> Index:
        """Return the index of a folder and split, read once."""
        with self._lock:
            if (slug, split) not in self._indices:
                self._indices[slug, split] = self.store.index(slug, split)
            return self._indices[slug, split]

    @cached_property
    def labels(self) -> list[str]:
        """The labels that samples have, sorted."""
        classes = self.store.classes
        return [] if classes is None else classes["name"].to_pylist()

    @cached_property
    def owners(self) -> Column:
        """The sample of each caption."""
        return Column(self.store.captions["sample"])

    @cached_property
    def _features(self) -> dict[str, Features]:
        return {slug: self.store.features(slug) for towers in self.models.values() for slug in towers.values()}

    def _known(self, model: str) -> str:
        if model not in self.models:
            raise CusaError(where="model", found=model, expected=f"one of {', '.join(self.models) or 'none'}")
        return model

    def _default(self) -> str:
        manifest = self.store.manifest
        towers = cross_modal_slugs(manifest)
        return manifest.teachers[towers["image"] if towers else default_slug(self.store, "image")].spec

    def _among(self, features: Features, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
        rows = rows[features.valid[rows]]
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        similarity = [features.gather(block).astype(np.float32) @ vector for block in blocks]
        return np.concatenate([np.empty(0, np.float32), *similarity]), rows

    def _find_label(self, label: str, split: str, level: Level) -> NDArray[np.int64]:
        samples = self.store.rows(split, "sample")
        named = Column(self.store.samples["label"]).run(int(samples[0]), len(samples))
        bears: NDArray[np.bool_] = pc.equal(named, label).fill_null(False).to_numpy(zero_copy_only=False)
        samples = samples[bears]
        if level == "sample":
            return samples
        first, count = (
            Column(self.store.samples[name]).numbers(samples) for name in ("caption_first", "caption_count")
        )
        runs = [np.arange(start, start + length) for start, length in zip(first, count, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *runs])


class BeingMade(StoreError):
    """The store is not finished at the moment."""


class Served:
    """The store at a place, opened again whenever a run of cusa-extract has made it anew."""

    def __init__(self, path: Path, first: str | None) -> None:
        """Open the store; `first` is the model that is asked where none is named.

        Raises:
            StoreError: there is no finished store.
        """
        self.path, self._first, self._lock = path, first, threading.Lock()
        self._stamp, self._state = self._opened()

    def now(self) -> ServedStore:
        """Return the store as it is now.

        Raises:
            BeingMade: a run of cusa-extract is at work on it.
        """
        with self._lock:
            if file_state(Layout(self.path).manifest) != self._stamp:
                try:
                    self._stamp, self._state = self._opened()
                except CusaError as error:  # also a model that is gone
                    raise BeingMade(f"The store is being made anew: {error.message}") from None
            return self._state

    def _opened(self) -> tuple[tuple[int, ...] | None, ServedStore]:
        stamp = file_state(Layout(self.path).manifest)
        return stamp, ServedStore(Store.open(self.path), self._first)
