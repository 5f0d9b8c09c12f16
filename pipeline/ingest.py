"""Ingest: a source's records become shards, the sample and caption tables, the truth, and the quarantine list.

One pass over the source, shard by shard: what is held in memory is one shard's records, and a few numbers a shard.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Final

import pydantic
from rich.progress import Progress

from pipeline.first_seen import FirstSeen, first_seen
from pipeline.shards import PlannedShard, Quarantined, Receipt, make_shard, read_receipt, shard_fault
from pipeline.sources import BadRecord, Record, Rejected, Source
from pipeline.sources.base import KnowsTruth
from pipeline.tabulate import write_tables, write_truth
from pipeline.unplanned import check_replaced_shard, check_truth, unplanned_shards
from stores import Manifest, Shard, SourceError
from stores.atomic import atomic_path
from stores.digests import file_digest
from stores.layout import SAFE_NAME, Layout, shard_name
from stores.manifest import withdraw_manifest
from stores.parameters import Data

_ENOUGH_TO_JUDGE: Final = 10_000
"""How many samples (or captions) are taken for the least where a source does not know how many it has."""


_PASSING: Final = {"missing-file", "unreadable-file", "changed-file"}
"""Reasons for which the disk or the network may be to blame, rather than the data set."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What ingest leaves: the shards in row order, the files' checksums, and what was rejected or made."""

    shards: tuple[Shard, ...]
    files: dict[str, str]
    rejected: Counter[str]
    """How many samples and captions were rejected, by reason."""
    made: dict[str, str]
    """The files made in this run, and why each was."""


def ingest(
    source: Source,
    data: Data,
    shard_size: int,
    layout: Layout,
    progress: Progress,
    *,
    before: Manifest | None = None,
    retry: bool = False,
) -> Ingested:
    """Bring the store's shards and tables up to the source, making only what is missing, stale or damaged.

    Args:
        source: the data set.
        data: its limits.
        shard_size: records a shard.
        layout: the store.
        progress: where a bar is shown.
        before: what the store held; tables that it still describes are kept.
        retry: make shards again from which something was rejected, in case the fault has passed.

    Raises:
        SourceError: a larger share than `data.max_bad_fraction` of the samples or captions is bad.
        StoreError: a person's file lies where one of the store belongs.
    """
    if not isinstance(source, KnowsTruth):
        check_truth(before, layout)
    tally = _Tally(source, data.max_bad_fraction, layout)
    unfinished = not layout.manifest.exists()
    counts = [source.count(split) for split in source.splits]
    total = sum(count for count in counts if count is not None) if None not in counts else None
    task = progress.add_task("shards", total=total, note="")
    with (
        first_seen(layout.root) as seen,
        ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="read") as readers,
    ):
        for plan in plan_shards(source, shard_size, data.max_pixels, seen):
            fingerprint = plan.fingerprint(readers)
            fault = shard_fault(plan.name, fingerprint, layout)
            if fault is None and _worth_another_try(plan.name, layout, every=retry, unfinished=unfinished):
                fault = "tried again: something was rejected"
            if fault:
                check_replaced_shard(plan.name, before, layout)
                withdraw_manifest(layout)
                tally.made[f"shards/{plan.name}"] = fault
                for done in make_shard(plan, fingerprint, layout, readers):
                    progress.advance(task, done)
            else:
                progress.advance(task, len(plan.records))
            tally.add(plan, read_receipt(layout.shard_receipt(plan.name)))
            if tally.rejected:
                progress.update(task, note=f"{tally.rejected.total():,} rejected")
    progress.update(task, total=tally.samples)
    return _finish(source, tally, layout, before)


def _worth_another_try(name: str, layout: Layout, *, every: bool, unfinished: bool) -> bool:
    """Tell whether a whole shard is made again for what was rejected from it: on request, or after a run that stopped.

    After such a run only what could not be read counts, since the disk or the network may be to blame.
    """
    rejected = read_receipt(layout.shard_receipt(name)).quarantined if every or unfinished else ()
    return any(every or entry.reason in _PASSING for entry in rejected)


def _finish(source: Source, tally: _Tally, layout: Layout, before: Manifest | None) -> Ingested:
    if not tally.names:
        raise SourceError("The source holds no records: there is nothing to extract.")
    tables = (layout.samples, layout.captions, layout.relevance, layout.caption_pairs)
    found = _digests(*tables, layout.quarantine)
    if unplanned := unplanned_shards(set(tally.names), before, layout):
        withdraw_manifest(layout)
        for path in unplanned:
            path.unlink()
    _write_quarantine(tally.names, layout)
    tally.check(final=True)
    shards = tuple(tally.shards)
    if not shards:
        raise SourceError(f"No sample is left: all {tally.samples:,} were rejected. Reasons: {layout.quarantine}.")
    if before is None or before.shards != shards or before.files != found:
        withdraw_manifest(layout)
        write_tables(shards, layout)
        write_truth(source, tally.first_keys, shards, layout)
    files = _digests(*tables, layout.quarantine)
    for name in (name for name, digest in files.items() if digest != found.get(name)):
        whole = before is None or before.files.get(name) == found.get(name)
        tally.made[name] = "missing" if name not in found else "stale: other shards" if whole else "damaged: checksum"
    return Ingested(shards=shards, files=files, rejected=tally.rejected, made=tally.made)


def _digests(*paths: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in paths if path.is_file()}


def plan_shards(source: Source, shard_size: int, max_pixels: int, seen: FirstSeen) -> Iterator[PlannedShard]:
    """Cut each split's records into runs of `shard_size`; a source id that came before is marked as a duplicate.

    Raises:
        SourceError: a split's name cannot name files.
    """
    first_key = 0
    for split in source.splits:
        if not re.fullmatch(SAFE_NAME, split):
            raise SourceError(
                f"{split!r} cannot name a split, since files are named after it: expected letters, digits, "
                f"'_', '.' and '-', a letter or digit first."
            )
        records = source.records(split)
        for number, head in enumerate(records):
            run = _once([head, *islice(records, shard_size - 1)], source.id_scope(split), first_key, seen)
            yield PlannedShard(
                name=shard_name(split, number), split=split, first_key=first_key, records=run, max_pixels=max_pixels
            )
            first_key += len(run)


def _once(
    records: Sequence[Record | BadRecord], scope: str, first_key: int, seen: FirstSeen
) -> Sequence[Record | BadRecord]:
    """Mark the records whose id came before in their scope."""
    firsts = seen.rows((f"{scope}\0{record.source_id}" for record in records), first_key)
    return [
        record if first == key else _duplicate(record.source_id)
        for record, first, key in zip(records, firsts, range(first_key, first_key + len(records)), strict=True)
    ]


def _duplicate(source_id: str) -> BadRecord:
    rejected = Rejected("duplicate-id", f"{source_id} came before; the first is kept")
    return BadRecord(source_id=source_id, rejected=rejected)


@dataclass
class _Tally:
    """Counts what was taken and what was rejected, numbers the shards, and stops a run in which too much is bad."""

    source: Source
    fraction: float
    layout: Layout
    names: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    first_keys: dict[str, int] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    captions: int = 0
    _bad_samples: Counter[str] = field(default_factory=Counter)
    _bad_captions: Counter[str] = field(default_factory=Counter)
    _first_bad: dict[bool, Quarantined] = field(default_factory=dict)

    def add(self, plan: PlannedShard, receipt: Receipt) -> None:
        """Take a finished shard, giving it its global rows.

        Raises:
            SourceError: too much is bad.
        """
        self.names.append(plan.name)
        self.first_keys.setdefault(plan.split, plan.first_key)
        if receipt.samples:
            last = self.shards[-1] if self.shards else None
            self.shards.append(
                Shard(
                    name=plan.name,
                    split=plan.split,
                    samples=receipt.samples,
                    captions=receipt.captions,
                    first_sample=last.first_sample + last.samples if last else 0,
                    first_caption=last.first_caption + last.captions if last else 0,
                    bytes=receipt.bytes,
                    sha256=receipt.sha256,
                )
            )
        self.samples += len(plan.records)
        self.captions += sum(len(record.captions) for record in plan.records if isinstance(record, Record))
        for entry in receipt.quarantined:
            self._first_bad.setdefault(entry.caption is None, entry)
            (self._bad_samples if entry.caption is None else self._bad_captions)[entry.reason] += 1
            self.rejected[entry.reason] += 1
        if receipt.quarantined:
            self.check()

    def check(self, *, final: bool = False) -> None:
        """Raise a `SourceError` if more are bad than the source, as far as its size is known, may hold."""
        counts = [self.source.count(split) for split in self.source.splits]
        known = 0 if final or None in counts else sum(count or 0 for count in counts)
        least = 0 if final else _ENOUGH_TO_JUDGE
        for bad, total, what in (
            (self._bad_samples, known or max(self.samples, least), "samples"),
            (self._bad_captions, max(self.captions, least), "captions"),
        ):
            if bad.total() <= self.fraction * total:
                continue
            _write_quarantine(self.names, self.layout)
            first = self._first_bad[what == "samples"]
            listed = ", ".join(f"{reason} {count:,}" for reason, count in bad.most_common())
            raise SourceError(
                f"{bad.total():,} of {total:,} {what} are bad so far ({listed}); "
                f"data.max_bad_fraction allows {self.fraction:.0%}.\n"
                f"First: {first.source_id[:200]!r}: {first.detail[:500]}.\n"
                f"All are listed in {self.layout.quarantine}. Mend the source, or raise data.max_bad_fraction; "
                f"--retry tries all of them again."
            )


def _write_quarantine(names: Sequence[str], layout: Layout) -> None:
    """List what the shards' receipts say was rejected."""
    dump = pydantic.TypeAdapter(Quarantined).dump_python
    with atomic_path(layout.quarantine) as temporary, temporary.open("w", encoding="utf-8") as stream:
        entries = chain.from_iterable(read_receipt(layout.shard_receipt(name)).quarantined for name in names)
        stream.writelines(json.dumps(dump(entry, exclude_none=True), sort_keys=True) + "\n" for entry in entries)
