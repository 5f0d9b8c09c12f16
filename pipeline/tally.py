"""Counts of what ingest took and what it rejected; a run in which too much is bad is stopped, with the reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import pydantic

from pipeline.receipts import Quarantined, Receipt, read_receipt
from pipeline.shards import PlannedShard
from pipeline.sources import BadRecord, Source
from stores import Shard
from stores.atomic import atomic_path
from stores.errors import TooManyRejectedError
from stores.layout import Layout

_ENOUGH_TO_JUDGE: Final = 10_000
"""How many samples (or captions) are taken for the least where a source does not know how many it has."""


@dataclass
class Tally:
    """Counts what was taken and what was rejected, numbers the shards, and stops a run in which too much is bad."""

    source: Source
    fraction: float
    layout: Layout
    joined: int
    """Records that were merged into others."""
    names: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    first_keys: dict[str, int] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The first that was rejected for each reason."""
    samples: int = 0
    captions: int = 0
    lost_captions: int = 0
    """Captions of rejected samples, which are not rejected one by one."""
    _bad_records: int = 0
    """Of the bad samples, those that their source showed to be bad, which can be merged with nothing."""
    _bad_samples: Counter[str] = field(default_factory=Counter)
    _bad_captions: Counter[str] = field(default_factory=Counter)

    @property
    def expected(self) -> int | None:
        """How many samples the source has, where it knows without reading them all."""
        counts = [self.source.count(split) for split in self.source.splits]
        return None if None in counts else sum(count or 0 for count in counts)

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
        self._bad_records += sum(isinstance(record, BadRecord) for record in plan.records)
        captions = sum(plan.caption_counts())
        self.captions += captions
        self.lost_captions += captions - receipt.captions - sum(e.caption is not None for e in receipt.quarantined)
        for entry in receipt.quarantined:
            self.examples.setdefault(entry.reason, f"{entry.source_id[:200]!r}: {entry.detail[:300]}")
            (self._bad_samples if entry.caption is None else self._bad_captions)[entry.reason] += 1
            self.rejected[entry.reason] += 1
        if receipt.quarantined:
            self.check()

    def check(self, *, final: bool = False) -> None:
        """Raise a `TooManyRejectedError` if more are bad than the source, as far as its size is known, may hold."""
        known = 0 if final else self.expected or 0
        least = 0 if final else _ENOUGH_TO_JUDGE
        samples, captions = known or max(self.samples, least), max(self.captions, least)
        # A bad row weighs as one of all rows, a bad picture as one of all pictures.
        share = self._bad_records / (samples + self.joined)
        share += (self._bad_samples.total() - self._bad_records) / samples
        for bad, total, what, is_much in (
            (self._bad_samples, samples, "samples", share > self.fraction),
            (self._bad_captions, captions, "captions", self._bad_captions.total() > self.fraction * captions),
        ):
            if not is_much:
                continue
            write_quarantine(self.names, self.layout)
            listed = "\n".join(
                f"  {reason} {count:,}, first {self.examples[reason]}" for reason, count in bad.most_common()
            )
            expected = f"at most {self.fraction:.0%} of {total:,} (data.max_bad_fraction)"
            advice, path = "Mend the source, or raise that; --retry tries all again.", self.layout.quarantine
            error = TooManyRejectedError(path=path, where=what, found=bad.total(), expected=expected, advice=advice)
            error.add_note(f"{listed}\n{lost_captions(self.lost_captions)}".rstrip())
            raise error


def lost_captions(count: int) -> str:
    """Say how many captions went with rejected samples; nothing where none did."""
    return f"{count:,} caption{'s' * (count != 1)} went with these samples." if count else ""


def write_quarantine(names: Sequence[str], layout: Layout) -> None:
    """List what the shards' receipts say was rejected."""
    dump = pydantic.TypeAdapter(Quarantined).dump_python
    with atomic_path(layout.quarantine) as temporary, temporary.open("w", encoding="utf-8") as stream:
        entries = chain.from_iterable(read_receipt(layout.shard_receipt(name)).quarantined for name in names)
        stream.writelines(json.dumps(dump(entry, exclude_none=True), sort_keys=True) + "\n" for entry in entries)
