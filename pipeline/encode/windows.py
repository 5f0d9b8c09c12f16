"""Windows: runs of whole shards whose rows are planned together, with rows of equal content found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.first_seen import FirstSeen
from stores import Shard, tables
from stores.layout import Layout
from stores.modality import Level


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine is to encode: windows of which store, and how; small enough to be sent to another machine."""

    layout: Layout
    shards: tuple[Shard, ...]
    """All shards of the store."""
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive shards, and what of them is to be encoded; small enough to be sent to another machine."""

    shards: tuple[Shard, ...]
    number: int
    """The number of the first of them among the store's."""
    firsts: NDArray[np.int64]
    """(n,) for each row of the window, the store's first row of the same content: itself, or an earlier one."""
    pending: NDArray[np.bool_]
    """(n,) which rows belong to a shard whose part is to be written."""
    opening: bool
    """Whether it is the run's first, on which a teacher's precision is checked."""

    def first_row(self, level: Level) -> int:
        return self.shards[0].first_row(level)

    def rows(self, level: Level) -> NDArray[np.int64]:
        """Return the store's rows of the window: (n,)."""
        return self.first_row(level) + np.arange(len(self.firsts))

    @property
    def encoded(self) -> int:
        """How many rows an encoder is asked for."""
        return int(self.pending.sum())


def plan_windows(
    shards: Sequence[Shard], pending: set[str], level: Level, size: int, layout: Layout, seen: FirstSeen
) -> Iterator[Window]:
    """Yield the windows that hold pending shards, in the order of rows.

    `pending` names those of the store's `shards` whose parts are to be written. A window holds at least `size` rows of
    the `level`, the last one excepted; `seen` is an empty map, to find equal contents by.
    """
    contents = _contents(layout, level)
    left = len(pending)
    opening = True
    number = 0
    for run in _runs(shards, level, size):
        if not left:
            return
        firsts = np.concatenate(
            [seen.rows(contents(number + k), shard.first_row(level)) for k, shard in enumerate(run)]
        )
        wanted = sum(shard.name in pending for shard in run)
        if wanted:
            mask = np.concatenate([np.full(shard.rows(level), shard.name in pending) for shard in run])
            yield Window(shards=tuple(run), number=number, firsts=firsts, pending=mask, opening=opening)
            opening, left = False, left - wanted
        number += len(run)


def _runs(shards: Iterable[Shard], level: Level, size: int) -> Iterator[list[Shard]]:
    run: list[Shard] = []
    rows = 0
    for shard in shards:
        run.append(shard)
        rows += shard.rows(level)
        if rows >= size:
            yield run
            run, rows = [], 0
    if run:
        yield run


def _contents(layout: Layout, level: Level) -> Callable[[int], list[str]]:
    """Return what gives the contents of a shard's rows by its number: the texts, or the digests of images (or "")."""
    path, schema, column = (
        (layout.samples, tables.SAMPLES, "image_sha256")
        if level == "sample"
        else (layout.captions, tables.CAPTIONS, "text")
    )
    reader = tables.open_batches(path, schema)

    def contents(number: int) -> list[str]:
        return [value or "" for value in reader.get_batch(number)[column].to_pylist()]

    return contents
