"""A finished store as a data set: its pairs, without those that a clean column holds to be wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.records import BadRecord, Record
from stores import Store
from stores.clean import read_clean
from stores.columns import Column
from stores.digests import file_digest
from stores.errors import SourceError
from stores.parameters import Data


class StoreSource:
    """The samples of a store with the captions that they are paired with; those left without captions go as well."""

    def __init__(self, data: Data) -> None:
        """Open the store, and the clean column if one is given.

        Raises:
            SourceError: data.source is no path.
            StoreError: there is no such store, or the clean column is of another.
        """
        if not isinstance(data.source, str):
            raise SourceError("one place a split", where="data.source", expected="the folder of one store")
        self._root, self._store = Path(data.source), Store.open(data.source)
        self._clean, self._at_least, self._captioned = data.clean, data.clean_at_least, "text" in data.require
        pairing = self._store.captions if self._store.pairing is None else self._store.pairing
        self._columns = {name: Column(self._store.samples[name]) for name in ("source_id", "image_sha256", "label")}
        self._texts = Column(self._store.captions["text"])
        self._paired = Column(pairing["sample"])
        self._doubtful = np.empty(0, dtype=np.int64)
        if data.clean is not None:
            rows, probabilities = read_clean(Path(data.clean), self._store)
            self._doubtful = rows[probabilities < data.clean_at_least]

    @property
    def description(self) -> dict[str, Any]:
        manifest = self._store.manifest
        found: dict[str, Any] = {"format": "store", "data": manifest.source_fingerprint, "of": manifest.source}
        if self._clean is not None:
            found |= {"clean": file_digest(Path(self._clean)), "at_least": self._at_least}
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        return self._store.manifest.splits

    def id_scope(self, split: str) -> str:
        return split

    def count(self, split: str) -> int | None:
        return None

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        kept = np.setdiff1d(self._store.rows(split, "caption"), self._doubtful, assume_unique=True)
        paired = self._paired.numbers(kept)
        order = np.argsort(paired, kind="stable")
        samples = np.unique(paired) if self._captioned else self._store.rows(split, "sample")
        starts = np.searchsorted(paired[order], samples)
        for sample, rows in zip(samples.tolist(), np.split(kept[order], starts[1:]), strict=True):
            yield self._record(sample, rows)

    def _record(self, sample: int, captions: NDArray[np.int64]) -> Record:
        row = np.array([sample])
        values = {name: column.values(row)[0] for name, column in self._columns.items()}
        texts = self._texts.values(captions)
        image = ImageOfStore(str(self._root), sample, values["image_sha256"]) if values["image_sha256"] else None
        return Record(source_id=values["source_id"], captions=tuple(texts), image=image, label=values["label"])


_reading = threading.Lock()


@dataclass(frozen=True)
class ImageOfStore:
    """The image of a sample of a store."""

    root: str
    sample: int
    sha256: str

    def identity(self) -> str:
        return self.sha256

    def place(self) -> str:
        """Return the sample: that two of the store show one picture is its own business."""
        return f"{self.sample}"

    def read(self) -> bytes:
        with _reading:  # a table's batches are no business of two threads at once
            return _opened(self.root).images[self.sample]


@lru_cache(maxsize=4)
def _opened(root: str) -> Store:
    return Store.open(root)
