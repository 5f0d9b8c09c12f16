"""Records of one picture become one sample, wherever in their split they stand.

A table with a row per caption names each picture several times; were these rows samples of their own, a picture's own
captions would be taken for its negatives. The source is read twice, with a file between, so that memory stays flat:

1. Each record's picture is told by its path, or by the digest of its bytes; a map on disk says which record showed it
   first. The captions of the later ones are noted under that first one.
2. The later records are left out, and the first gets their captions, in the records' order.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

from rich.progress import Progress

from pipeline.first_seen import FirstSeen, system_errors, temporary_database
from pipeline.sources import BadRecord, KnowsTruth, Record, Rejected, Source
from pipeline.sources.records import EncodedImage

Merge = Literal["path", "bytes", "none"]
_AT_ONCE: Final = 128
"""Records whose pictures are read side by side. A Parquet file's reader keeps twice as many rows around."""
_RUN: Final = 4


@dataclass(frozen=True)
class _Split:
    """The records of a split: those numbered from `first` up to `end`, of which `later` join an earlier one."""

    first: int
    end: int
    later: int


class MergedSource:
    """A source in which no picture comes twice in a split."""

    def __init__(self, source: Source, splits: dict[str, _Split], database: sqlite3.Connection) -> None:
        self._source, self._splits, self._database = source, splits, database
        self.relabelled: Counter[str] = Counter()
        """How many samples of each split, as far as they were read, lost a label that another record gave first."""

    @property
    def description(self) -> dict[str, Any]:
        return self._source.description

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    @property
    def merged(self) -> dict[str, int]:
        """How many records of each split joined an earlier one; splits without any are left out."""
        return {name: split.later for name, split in self._splits.items() if split.later}

    def id_scope(self, split: str) -> str:
        return self._source.id_scope(split)

    def count(self, split: str) -> int:
        found = self._splits[split]
        return found.end - found.first - found.later

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        found = self._splits[split]
        with system_errors():
            ask, bounds = self._database.execute, (found.first, found.end)
            left_out = (row for (row,) in ask("SELECT row FROM later WHERE row >= ? AND row < ? ORDER BY row", bounds))
            joined = ask("SELECT first, said FROM later WHERE row >= ? AND row < ? ORDER BY first, row", bounds)
            skipped, more = next(left_out, None), joined.fetchone()
            for row, record in enumerate(self._source.records(split), start=found.first):
                if row == skipped:
                    skipped = next(left_out, None)
                    continue
                said = []
                while more is not None and more[0] == row:
                    said.append(json.loads(more[1]))
                    more = joined.fetchone()
                yield self._joined(record, said, split) if said and isinstance(record, Record) else record

    def _joined(self, record: Record, said: Sequence[tuple[list[Any], str | None]], split: str) -> Record:
        """Return a record with the captions of later ones; the first label that there is stays."""
        captions = [one if isinstance(one, str) else Rejected(*one) for texts, _ in said for one in texts]
        labels = [label for label in (record.label, *(label for _, label in said)) if label is not None]
        self.relabelled[split] += len(set(labels)) > 1
        return replace(record, captions=(*record.captions, *captions), label=next(iter(labels), None))


@contextmanager
def merged(
    source: Source, merge: Merge, folder: Path, readers: ThreadPoolExecutor, progress: Progress
) -> Iterator[Source]:
    """Yield the source with the records of each picture as one, while a file in `folder` says which these are.

    `merge` is path (by the picture's path, or its bytes where it has none), bytes, or none (not at all). A source that
    knows its own truth knows its pictures too, and stays as it is.
    """
    if merge == "none" or isinstance(source, KnowsTruth):
        yield source
        return
    with temporary_database(folder / "merge") as database:
        with system_errors():
            database.execute("CREATE TABLE later (row INTEGER PRIMARY KEY, first INTEGER, said TEXT)")
        seen, splits, first = FirstSeen(database), {}, 0
        task = progress.add_task("pictures", total=None, note="")
        for split in source.splits:
            end, later = first, 0
            stream = source.records(split)
            while records := list(islice(stream, _AT_ONCE)):
                later += _note_later(records, split, end, merge, seen, database, readers)
                end += len(records)
                progress.update(task, completed=end)
            splits[split] = _Split(first, end, later)
            first = end
        progress.update(task, total=first, visible=False)
        yield MergedSource(source, splits, database)


def _note_later(
    records: Sequence[Record | BadRecord],
    split: str,
    first: int,
    merge: Merge,
    seen: FirstSeen,
    database: sqlite3.Connection,
    readers: ThreadPoolExecutor,
) -> int:
    """Note the records, numbered from `first`, whose picture came before; return how many they are."""
    names = _named(records, merge, readers)
    rows = range(first, first + len(records))
    keys = (f"{split}\0{name}" if name else f"\0{row}" for name, row in zip(names, rows, strict=True))
    firsts = seen.rows(keys, first).tolist()
    later = []
    for row, of, record in zip(rows, firsts, records, strict=True):
        if row != of and isinstance(record, Record):
            captions = [said if isinstance(said, str) else (said.reason, said.detail) for said in record.captions]
            later.append((row, of, json.dumps([captions, record.label])))
    with system_errors():
        database.executemany("INSERT INTO later VALUES (?, ?, ?)", later)
    return len(later)


def _named(records: Sequence[Record | BadRecord], merge: Merge, readers: ThreadPoolExecutor) -> list[str | None]:
    """Return what tells each record's picture; None for one that cannot be read, which is like no other."""
    images = [record.image if isinstance(record, Record) else None for record in records]
    names = [image.place() if image is not None and merge == "path" else None for image in images]
    unnamed = [(place, image) for place, image in enumerate(images) if image is not None and names[place] is None]
    runs = [[image for _, image in unnamed[start : start + _RUN]] for start in range(0, len(unnamed), _RUN)]
    for (place, _), digest in zip(unnamed, chain.from_iterable(readers.map(_digests, runs)), strict=True):
        names[place] = digest
    return names


def _digests(images: Sequence[EncodedImage]) -> list[str | None]:
    found: list[str | None] = []
    for image in images:
        try:
            found.append("\0" + hashlib.sha256(image.read()).hexdigest())
        except Rejected:
            found.append(None)
    return found
