"""A finished store, opened for reading."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores import tables
from stores.errors import StoreError
from stores.features import Features
from stores.images import Images
from stores.layout import Layout
from stores.manifest import Manifest, Shard, read_manifest
from stores.modality import Level

if TYPE_CHECKING:
    from stores.index import Index


class Store:
    """Samples, captions, images, teacher features and indices of one data set; row numbers are global and dense."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._layout = Layout(root)
        self.images = Images(self._layout, manifest.shards)
        """The encoded image files, by sample row."""

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open the store at `path`.

        Raises:
            StoreError: there is no finished store, or it is damaged or of another format.
        """
        root = Path(path)
        return cls(root, read_manifest(Layout(root)))

    @cached_property
    def samples(self) -> pa.Table:
        """One row a sample; the schema is `stores.tables.SAMPLES`."""
        return tables.read_table(self._layout.samples, tables.SAMPLES)

    @cached_property
    def captions(self) -> pa.Table:
        """One row a caption; the schema is `stores.tables.CAPTIONS`."""
        return tables.read_table(self._layout.captions, tables.CAPTIONS)

    @property
    def classes(self) -> pa.Table | None:
        """The names of the classes that samples' labels name, sorted; None where no sample has a label."""
        return self._optional(self._layout.classes, tables.CLASSES)

    @property
    def relevance(self) -> pa.Table | None:
        """Every true (caption row, sample row) pair, or None where the source does not know."""
        return self._optional(self._layout.relevance, tables.RELEVANCE)

    @property
    def pairing(self) -> pa.Table | None:
        """The sample that each caption is paired with; None where each is with its own."""
        return self._optional(self._layout.pairing, tables.PAIRING)

    @property
    def caption_pairs(self) -> pa.Table | None:
        """Graded caption pairs, or None where the source has none."""
        return self._optional(self._layout.caption_pairs, tables.CAPTION_PAIRS)

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of `split`, in the order of their rows.

        Raises:
            StoreError: the store has no such split.
        """
        shards = tuple(shard for shard in self.manifest.shards if shard.split == split)
        if not shards:
            raise StoreError(f"{self.root} has no split {split!r}; it has {', '.join(self.manifest.splits) or 'none'}.")
        return shards

    def rows(self, split: str, level: Level) -> NDArray[np.int64]:
        """Return the global rows of a split's samples or captions, which are consecutive; classes are of no split."""
        shards = self.shards(split)
        if level == "class":
            return np.arange(self.manifest.classes)
        last = shards[-1]
        return np.arange(shards[0].first_row(level), last.first_row(level) + last.rows(level))

    def features(self, slug: str) -> Features:
        """Return the features whose folder is `slug`: a teacher's, or imported ones.

        Raises:
            StoreError: there are none of that name.
        """
        entry = self.manifest.features.get(slug)
        if entry is None:
            known = ", ".join(sorted(self.manifest.features)) or "none"
            raise StoreError(
                f"{self.root} has no features {slug!r}; it has {known}. Run cusa-extract with that teacher, or with "
                f"--features {slug}=FILE: it adds a folder and touches nothing else."
            )
        return Features(self._layout, slug, self.manifest.shards_of(entry.level), entry)

    def index(self, slug: str, split: str) -> Index:
        """Open the FAISS index of a teacher and split."""
        from stores.index import Index  # here, since most who open a store search nothing: it loads faiss

        if split not in self.manifest.indices.get(slug, {}):
            raise StoreError(
                f"{self.root} has no index of the teacher {slug!r} over the split {split!r}. Run cusa-extract."
            )
        return Index.read(self._layout.index(slug, split))

    def _optional(self, path: Path, schema: pa.Schema) -> pa.Table | None:
        return tables.read_table(path, schema) if path.name in self.manifest.files else None
