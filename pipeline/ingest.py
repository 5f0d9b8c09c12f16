"""Ingest: a source's records become shards, the sample and caption tables, the truth, and the quarantine list.

One pass over the source, shard by shard: what is held in memory is one shard's records, and a few numbers a shard.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from rich.progress import Progress

from pipeline.first_seen import FirstSeen, first_seen
from pipeline.merge import MergedSource, merged
from pipeline.pictures import shared_pictures
from pipeline.receipts import read_receipt
from pipeline.shards import PlannedShard, make_shard, shard_fault
from pipeline.sources import BadRecord, Record, Rejected, Source
from pipeline.sources.records import KnowsTruth
from pipeline.tabulate import check_classes, count_classes, ensure_pairing, write_classes, write_tables, write_truth
from pipeline.tally import Tally, write_quarantine
from pipeline.unplanned import check_replaced_shard, check_truth, unplanned_shards
from stores import Manifest, Shard, SourceError
from stores.cores import usable_cores
from stores.digests import file_digest
from stores.layout import SAFE_NAME, Layout, shard_name
from stores.manifest import withdraw_manifest
from stores.parameters import Data, Noise

_PASSING: Final = {"missing-file", "unreadable-file", "changed-file"}
"""Reasons for which the disk or the network may be to blame, rather than the data set."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What ingest leaves: the shards in row order, the files' checksums, and what was rejected or made."""

    shards: tuple[Shard, ...]
    files: dict[str, str]
    rejected: Counter[str]
    """How many samples and captions were rejected, by reason."""
    examples: dict[str, str]
    """The first that was rejected for each reason."""
    lost_captions: int
    """Captions of rejected samples."""
    merged: dict[str, int]
    """How many records of each split joined the sample of an earlier one."""
    relabelled: int
    """Samples whose records have several labels; the first is kept."""
    shared: dict[str, dict[str, int]]
    """How many samples of each split show a picture that stands in an earlier split, or earlier in their own."""
    classes: int
    """How many classes the samples' labels name."""
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
    with (
        first_seen(layout.root) as seen,
        ThreadPoolExecutor(max_workers=min(32, 2 * usable_cores()), thread_name_prefix="read") as readers,
        merged(source, data.merge, layout.root, readers, progress) as once,
    ):
        joined = sum(once.merged.values()) if isinstance(once, MergedSource) else 0
        tally = Tally(once, data.max_bad_fraction, layout, joined)
        task = progress.add_task("shards", total=tally.expected, note="")
        update = _ShardUpdate(before, retry, not layout.manifest.exists(), tally, readers)
        for plan in plan_shards(once, shard_size, data, seen):
            for done in update.make(plan):
                progress.advance(task, done)
            tally.add(plan, read_receipt(layout.shard_receipt(plan.name)))
            if tally.rejected:
                progress.update(task, note=f"{tally.rejected.total():,} rejected")
        progress.update(task, total=tally.samples)
        return _finish(source, once, tally, layout, before, data.noise)


@dataclass(frozen=True)
class _ShardUpdate:
    """Makes the shards that are missing, stale or damaged, or are to be tried again."""

    before: Manifest | None
    retry: bool
    unfinished: bool
    """Whether the last run stopped."""
    tally: Tally
    readers: ThreadPoolExecutor

    def make(self, plan: PlannedShard) -> Iterator[int]:
        """Bring a shard up to its plan, yielding how many records are done since."""
        layout = self.tally.layout
        fingerprint = plan.fingerprint(self.readers)
        fault = shard_fault(plan.name, fingerprint, layout)
        if fault is None and _worth_another_try(plan.name, layout, every=self.retry, unfinished=self.unfinished):
            fault = "tried again: something was rejected"
        if fault is None:
            yield len(plan.records)
            return
        check_replaced_shard(plan.name, self.before, layout)
        withdraw_manifest(layout)
        self.tally.made[f"shards/{plan.name}"] = fault
        yield from make_shard(plan, fingerprint, layout, self.readers)


def _worth_another_try(name: str, layout: Layout, *, every: bool, unfinished: bool) -> bool:
    """Tell whether a whole shard is made again for what was rejected from it: on request, or after a run that stopped.

    After such a run only what could not be read counts, since the disk or the network may be to blame.
    """
    rejected = read_receipt(layout.shard_receipt(name)).quarantined if every or unfinished else ()
    return any(every or entry.reason in _PASSING for entry in rejected)


def _finish(
    source: Source, once: Source, tally: Tally, layout: Layout, before: Manifest | None, noise: Noise
) -> Ingested:
    """Write the tables, unless `before` shows that they are whole; return what there is."""
    if not tally.names:
        raise SourceError("The source holds no records: there is nothing to extract.")
    tables = (
        layout.samples,
        layout.captions,
        layout.pairing,
        layout.classes,
        layout.relevance,
        layout.caption_pairs,
    )
    found = _digests(*tables, layout.quarantine)
    if unplanned := unplanned_shards(set(tally.names), before, layout):
        withdraw_manifest(layout)
        for path in unplanned:
            path.unlink()
    write_quarantine(tally.names, layout)
    tally.check(final=True)
    shards = tuple(tally.shards)
    if not shards:
        raise SourceError(f"No sample is left: all {tally.samples:,} were rejected. Reasons: {layout.quarantine}.")
    shared = before.shared if before else None
    if before is None or before.shards != shards or before.files != found:
        check_classes(before, layout)
        withdraw_manifest(layout)
        write_tables(shards, layout)
        layout.classes.unlink(missing_ok=True)
        write_truth(source, tally.first_keys, shards, layout)
        shared = None
    if not layout.classes.exists():
        write_classes(layout)
    ensure_pairing(noise, shards, layout, before)
    if shared is None:
        shared = shared_pictures(layout, shards)
    files = _digests(*tables, layout.quarantine)
    for name in (name for name, digest in files.items() if digest != found.get(name)):
        whole = before is None or before.files.get(name) == found.get(name)
        tally.made[name] = "missing" if name not in found else "stale: other shards" if whole else "damaged: checksum"
    return Ingested(
        shards=shards,
        files=files,
        rejected=tally.rejected,
        examples=tally.examples,
        lost_captions=tally.lost_captions,
        merged=once.merged if isinstance(once, MergedSource) else {},
        relabelled=once.relabelled.total() if isinstance(once, MergedSource) else 0,
        shared=shared,
        classes=count_classes(layout),
        made=tally.made,
    )


def _digests(*paths: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in paths if path.is_file()}


def plan_shards(source: Source, shard_size: int, data: Data, seen: FirstSeen) -> Iterator[PlannedShard]:
    """Cut each split's records into runs of `shard_size`; a source id that came before is marked as a duplicate.

    Raises:
        SourceError: a split's name cannot name files.
    """
    first_key, require = 0, frozenset[str](data.require)
    for split in source.splits:
        if not re.fullmatch(SAFE_NAME, split):
            expected = "letters, digits, '_', '.' and '-', a letter or digit first, since files are named after it"
            raise SourceError("cannot name a split", found=split, expected=expected)
        records = source.records(split)
        for number, head in enumerate(records):
            run = _once([head, *islice(records, shard_size - 1)], source.id_scope(split), first_key, seen)
            yield PlannedShard(
                name=shard_name(split, number),
                split=split,
                first_key=first_key,
                records=run,
                max_pixels=data.max_pixels,
                require=require,
            )
            first_key += len(run)


def _once(
    records: Sequence[Record | BadRecord], scope: str, first_key: int, seen: FirstSeen
) -> Sequence[Record | BadRecord]:
    """Mark the records whose id came before in their scope."""
    keys = range(first_key, first_key + len(records))
    # A bad record takes no id away from a good one.
    ids = (
        f"{scope}\0{r.source_id}" if isinstance(r, Record) else f"\0{key}" for r, key in zip(records, keys, strict=True)
    )
    return [
        record if first == key or isinstance(record, BadRecord) else _duplicate(record)
        for record, first, key in zip(records, seen.rows(ids, first_key), keys, strict=True)
    ]


def _duplicate(record: Record) -> BadRecord:
    detail = (
        f"{record.source_id} came before, with another picture; the first is kept. "
        f"If a table's ids do not tell pictures apart, set data.columns.id to the image's column"
    )
    rejected = Rejected("duplicate-id", detail)
    return BadRecord(source_id=record.source_id, rejected=rejected, captions=len(record.captions))
