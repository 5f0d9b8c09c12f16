"""Ingest: a source's records become shards, the sample and caption tables, the truth, and the quarantine list."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pydantic
from rich.progress import Progress

from pipeline.shards import (
    PlannedShard,
    Quarantined,
    Receipt,
    make_shard,
    read_receipt,
    read_shard,
    shard_fault,
)
from pipeline.sources import BadRecord, Record, Rejected, Source
from stores import Shard, SourceError, tables
from stores.atomic import write_text
from stores.digests import file_digest
from stores.layout import SAFE_NAME, Layout, shard_name
from stores.parameters import Data


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What ingest leaves: the shards in row order, the checksums of the tables, and what was rejected or repaired."""

    shards: tuple[Shard, ...]
    files: dict[str, str]
    quarantined: tuple[Quarantined, ...]
    made: dict[str, str]
    """The shards made in this run, and why each was."""


def ingest(source: Source, data: Data, shard_size: int, layout: Layout, progress: Progress) -> Ingested:
    """Bring the store's shards and tables up to the source, making only what is missing, stale or damaged.

    Raises:
        SourceError: a larger share than `data.max_bad_fraction` of the samples or captions is bad.
    """
    planned = list(plan_shards(source, shard_size, data.max_pixels))
    if not planned:
        raise SourceError("The source holds no records: there is nothing to extract.")
    limit = _BadLimit(planned, data.max_bad_fraction, layout)
    faults = {shard.name: fault for shard in planned if (fault := shard_fault(shard, layout))}
    if faults:
        layout.manifest.unlink(missing_ok=True)
    _remove_unplanned({shard.name for shard in planned}, layout)
    _make_shards([shard for shard in planned if shard.name in faults], limit, layout, progress)
    receipts = {shard.name: read_receipt(layout.shard_receipt(shard.name)) for shard in planned}
    quarantined = [entry for receipt in receipts.values() for entry in receipt.quarantined]
    _write_quarantine(quarantined, layout)
    limit.check(quarantined)
    shards = tuple(_numbered(planned, receipts))
    if not shards:
        raise SourceError(f"No sample is left: all {limit.samples:,} were rejected. Reasons: {layout.quarantine}.")
    _write_tables(shards, layout)
    files = {path.name: file_digest(path) for path in (layout.samples, layout.captions, layout.quarantine)}
    files |= _write_truth(source, planned, shards, layout)
    return Ingested(shards=shards, files=files, quarantined=tuple(quarantined), made=faults)


def plan_shards(source: Source, shard_size: int, max_pixels: int) -> Iterator[PlannedShard]:
    """Cut each split's records into runs of `shard_size`; a source id that came before is marked as a duplicate.

    Raises:
        SourceError: a split's name cannot name files.
    """
    seen: set[tuple[str, str]] = set()
    first_key = 0
    for split in source.splits:
        if not re.fullmatch(SAFE_NAME, split):
            raise SourceError(
                f"{split!r} cannot name a split, since files are named after it: expected letters, digits, "
                f"'_', '.' and '-', a letter or digit first."
            )
        records = [_once(record, source.id_scope(split), seen) for record in source.records(split)]
        for number, first in enumerate(range(0, len(records), shard_size)):
            yield PlannedShard(
                name=shard_name(split, number),
                split=split,
                first_key=first_key + first,
                records=records[first : first + shard_size],
                max_pixels=max_pixels,
            )
        first_key += len(records)


def _once(record: Record | BadRecord, scope: str, seen: set[tuple[str, str]]) -> Record | BadRecord:
    name = (scope, record.source_id)
    if name in seen:
        rejected = Rejected("duplicate-id", f"{record.source_id} came before; the first is kept")
        return BadRecord(source_id=record.source_id, rejected=rejected)
    seen.add(name)
    return record


class _BadLimit:
    """Stops a run in which too large a share of the samples, or of the captions, is bad."""

    def __init__(self, planned: Sequence[PlannedShard], fraction: float, layout: Layout) -> None:
        self.samples = sum(len(shard.records) for shard in planned)
        self._captions = sum(len(r.captions) for shard in planned for r in shard.records if isinstance(r, Record))
        self._fraction, self._listed_in = fraction, layout.quarantine

    def check(self, quarantined: Sequence[Quarantined]) -> None:
        """Raise a `SourceError` if there are too many bad ones already."""
        samples = [entry for entry in quarantined if entry.caption is None]
        captions = [entry for entry in quarantined if entry.caption is not None]
        for bad, total, what in ((samples, self.samples, "samples"), (captions, self._captions, "captions")):
            if len(bad) <= self._fraction * total:
                continue
            reasons = Counter(entry.reason for entry in bad).most_common()
            raise SourceError(
                f"{len(bad):,} of {total:,} {what} are bad so far "
                f"({', '.join(f'{reason} {count:,}' for reason, count in reasons)}); "
                f"data.max_bad_fraction allows {self._fraction:.0%}.\n"
                f"First: {bad[0].source_id}: {bad[0].detail}.\n"
                f"All are listed in {self._listed_in}. Mend the source, or raise data.max_bad_fraction."
            )


def _make_shards(wanted: Sequence[PlannedShard], limit: _BadLimit, layout: Layout, progress: Progress) -> None:
    if not wanted:
        return
    task = progress.add_task("shards", total=sum(len(shard.records) for shard in wanted), note="")
    quarantined: list[Quarantined] = []
    with ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="read") as readers:
        for shard in wanted:
            for done in make_shard(shard, layout, readers):
                progress.advance(task, done)
            if rejected := read_receipt(layout.shard_receipt(shard.name)).quarantined:
                quarantined.extend(rejected)
                progress.update(task, note=f"{len(quarantined)} rejected")
                _write_quarantine(quarantined, layout)
                limit.check(quarantined)


def _write_quarantine(quarantined: Sequence[Quarantined], layout: Layout) -> None:
    dump = pydantic.TypeAdapter(Quarantined).dump_python
    lines = [json.dumps(dump(entry, exclude_none=True), sort_keys=True) for entry in quarantined]
    write_text(layout.quarantine, "".join(line + "\n" for line in lines))


def _remove_unplanned(names: set[str], layout: Layout) -> None:
    """Remove shards that the source, or the shard size, no longer gives; the manifest goes first."""
    folder = layout.root / "shards"
    stale = [path for path in folder.glob("*") if path.stem not in names] if folder.is_dir() else []
    if stale:
        layout.manifest.unlink(missing_ok=True)
    for path in stale:
        path.unlink()


def _numbered(planned: Sequence[PlannedShard], receipts: dict[str, Receipt]) -> Iterator[Shard]:
    """Give the shards that hold samples their global rows."""
    first_sample = first_caption = 0
    for plan in planned:
        receipt = receipts[plan.name]
        if not receipt.samples:
            continue
        yield Shard(
            name=plan.name,
            split=plan.split,
            samples=receipt.samples,
            captions=receipt.captions,
            first_sample=first_sample,
            first_caption=first_caption,
            bytes=receipt.bytes,
            sha256=receipt.sha256,
        )
        first_sample += receipt.samples
        first_caption += receipt.captions


def _write_tables(shards: Sequence[Shard], layout: Layout) -> None:
    tables.write_table(layout.samples, tables.SAMPLES, (_sample_columns(shard, layout) for shard in shards))
    tables.write_table(layout.captions, tables.CAPTIONS, (_caption_columns(shard, layout) for shard in shards))


def _sample_columns(shard: Shard, layout: Layout) -> dict[str, object]:
    samples = list(read_shard(layout.shard(shard.name)))
    counts = [len(sample.captions) for sample in samples]
    same = ("key", "source_id", "image_sha256", "image_offset", "image_bytes", "width", "height", "label")
    return {
        **{name: [getattr(sample, name) for sample in samples] for name in same},
        "split": [shard.split] * len(samples),
        "shard": [shard.name] * len(samples),
        "caption_first": shard.first_caption + np.cumsum([0, *counts[:-1]]),
        "caption_count": counts,
    }


def _caption_columns(shard: Shard, layout: Layout) -> dict[str, object]:
    samples = list(read_shard(layout.shard(shard.name)))
    return {
        "text": [text for sample in samples for text in sample.captions],
        "sample": np.repeat(
            np.arange(shard.first_sample, shard.first_sample + len(samples)), [len(s.captions) for s in samples]
        ),
    }


def _write_truth(
    source: Source, planned: Sequence[PlannedShard], shards: Sequence[Shard], layout: Layout
) -> dict[str, str]:
    """Write what the source knows of relevance and similarity, in global rows; return the files' checksums."""
    relevance: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    keys = tables.read_table(layout.samples, tables.SAMPLES)["key"]
    for split, shard_run in groupby(shards, key=lambda shard: shard.split):
        run = list(shard_run)
        first_key = next(plan.first_key for plan in planned if plan.split == split)
        samples = sum(shard.samples for shard in run)
        kept = [int(key.as_py()) - first_key for key in keys[run[0].first_sample : run[0].first_sample + samples]]
        truth = source.truth(split, kept)
        if truth is None:
            continue
        relevance.append(
            {
                "caption": truth.relevance[:, 0] + run[0].first_caption,
                "sample": truth.relevance[:, 1] + run[0].first_sample,
            }
        )
        pairs.append(
            {
                "first": truth.caption_pairs[:, 0].astype(np.int64) + run[0].first_caption,
                "second": truth.caption_pairs[:, 1].astype(np.int64) + run[0].first_caption,
                "similarity": truth.caption_pairs[:, 2],
            }
        )
    written = {}
    for path, schema, columns in (
        (layout.relevance, tables.RELEVANCE, relevance),
        (layout.caption_pairs, tables.CAPTION_PAIRS, pairs),
    ):
        if columns:
            tables.write_table(path, schema, columns)
            written[path.name] = file_digest(path)
        else:
            path.unlink(missing_ok=True)
    return written
