"""Features that a data set has of its own, into the store's parts: rows found by sample, caption or class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources import GivenFeatures
from stores import Shard, SourceError, tables
from stores.digests import value_digest
from stores.layout import Layout
from stores.modality import Level

SPEC = "the data set itself"


@dataclass(frozen=True)
class GivenImport:
    """What a data set has under a name."""

    name: str
    given: GivenFeatures
    in_order: ClassVar[bool] = False

    @property
    def level(self) -> Level:
        return self.given.level

    @property
    def unit(self) -> bool:
        return self.given.unit

    @property
    def shape(self) -> tuple[int, ...]:
        return self.given.shape

    @property
    def spec(self) -> str:
        return SPEC

    @cached_property
    def fingerprint(self) -> str:
        """Cover the content, level and shape."""
        given = self.given
        return value_digest(["given", self.name, given.level, list(given.shape), given.unit, given.identity()])

    def parts(
        self, shards: Sequence[Shard], pending: Sequence[Shard], layout: Layout
    ) -> Iterator[tuple[Shard, NDArray[np.float16], NDArray[np.bool_]]]:
        """Yield each of the `pending` shards, its features (rows, …), and (rows,) which are there.

        Captions of a sample of which the store left some out are absent: which of them are left is not known.

        Raises:
            SourceError: a number is not finite in float16.
        """
        for shard in pending:
            yield shard, *self._rows(shard, layout)

    def _rows(self, shard: Shard, layout: Layout) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        names, counts = _names(shard, self.level, layout)
        rows = np.full((sum(counts), *self.given.shape), np.nan, np.float32)
        start = 0
        for name, count in zip(names, counts, strict=True):
            found = self.given.of(name)
            if found is not None and len(found) == count:
                rows[start : start + count] = found
            start += count
        valid = np.logical_not(np.isnan(rows.reshape(len(rows), -1)).any(axis=1))
        with np.errstate(over="ignore"):
            features = np.where(valid.reshape(-1, *[1] * len(self.given.shape)), rows, 0).astype(np.float16)
        if not np.isfinite(features).all():
            raise SourceError(f"The features {self.name} hold numbers beyond those of float16. Scale them.")
        return features, valid


def _names(shard: Shard, level: Level, layout: Layout) -> tuple[list[str], list[int]]:
    """Return the shard's samples or classes by name, and how many rows of the level each has."""
    if level == "class":
        classes: list[str] = tables.read_table(layout.classes, tables.CLASSES)["name"].to_pylist()
        return classes, [1] * len(classes)
    table: pa.Table = tables.read_table(layout.samples, tables.SAMPLES).slice(shard.first_sample, shard.samples)
    names: list[str] = table["source_id"].to_pylist()
    return names, table["caption_count"].to_pylist() if level == "caption" else [1] * len(names)
