"""The check of rows: that the tables agree with the manifest, and with each other, on which row is what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.inspection.checks import AGAIN, Check, Fault, only_if_whole
from stores import Shard, Store, StoreError
from stores.columns import Column
from stores.modality import Level

_TRUTH = {
    "pairing.arrow": ("sample",),
    "relevance.arrow": ("caption", "sample"),
    "caption_pairs.arrow": ("first", "second"),
}


def row_check(store: Store, tables: Check) -> Check:
    """Return the check of the tables' rows, to run after `tables`: the sums, then shard by shard, then the truth."""
    truth = sum(name in store.manifest.files for name in _TRUTH)
    total = 1 + len(store.manifest.shards) + truth
    return Check("rows", total, lambda check: only_if_whole(tables, check, _rows(store)))


def _rows(store: Store) -> Iterator[Sequence[Fault]]:
    manifest = store.manifest
    counts = {
        "samples.arrow": sum(shard.samples for shard in manifest.shards),
        "captions.arrow": sum(shard.captions for shard in manifest.shards),
    }
    try:
        held = {"samples.arrow": store.samples, "captions.arrow": store.captions}
    except StoreError as error:
        yield [Fault("samples.arrow, captions.arrow", error.message, AGAIN)]
        return
    faults = [
        Fault(name, f"{held[name].num_rows:,} rows, the manifest says {expected:,}", AGAIN)
        for name, expected in counts.items()
        if held[name].num_rows != expected
    ]
    yield faults
    if not faults:
        yield from _shard_rows(store)
    yield from _truth(store, counts)


def _shard_rows(store: Store) -> Iterator[Sequence[Fault]]:
    samples = {name: Column(store.samples[name]) for name in store.samples.column_names}
    captions = {name: Column(store.captions[name]) for name in store.captions.column_names}
    first_sample = first_caption = 0
    for shard in store.manifest.shards:
        found = []
        if (shard.first_sample, shard.first_caption) != (first_sample, first_caption):
            found.append(("manifest.json", f"{shard.name} does not begin where the shard before it ends"))
        of_samples = {name: column.run(first_sample, shard.samples) for name, column in samples.items()}
        of_captions = {name: column.run(first_caption, shard.captions) for name, column in captions.items()}
        try:
            for column in (*of_samples.values(), *of_captions.values()):
                column.validate(full=True)
        except pa.ArrowInvalid as error:
            found.append(("samples.arrow, captions.arrow", f"rows of {shard.name} are no values: {error}"))
        else:
            found += [("samples.arrow", what) for what in _sample_faults(shard, of_samples, first_caption)]
            owners = np.repeat(first_sample + np.arange(shard.samples), of_samples["caption_count"].to_numpy().clip(0))
            if not np.array_equal(of_captions["sample"].to_numpy(), owners):
                found.append(("captions.arrow", f"captions of {shard.name} name other samples than have them"))
        yield [Fault(file, what, AGAIN) for file, what in found]
        first_sample, first_caption = first_sample + shard.samples, first_caption + shard.captions


def _sample_faults(shard: Shard, columns: dict[str, pa.Array], first_caption: int) -> Iterator[str]:
    counts = columns["caption_count"].to_numpy().astype(np.int64)
    firsts = first_caption + np.cumsum(counts) - counts
    if (counts < 1).any() or counts.sum() != shard.captions:
        yield f"{shard.name} has {counts.sum():,} captions, the manifest says {shard.captions:,}"
    if not np.array_equal(columns["caption_first"].to_numpy(), firsts):
        yield f"the captions of {shard.name} are not one run after another"
    for name, expected in (("split", shard.split), ("shard", shard.name)):
        if columns[name].unique().to_pylist() != [expected]:
            yield f"samples of {shard.name} name another {name} than {expected}"
    offsets, sizes = columns["image_offset"].to_numpy(), columns["image_bytes"].to_numpy()
    if ((offsets < 0) | (sizes < 1) | (offsets + sizes > shard.bytes)).any():
        yield f"images of {shard.name} lie outside its tar"


def _truth(store: Store, counts: dict[str, int]) -> Iterator[Sequence[Fault]]:
    held = {"caption": counts["captions.arrow"], "sample": counts["samples.arrow"]}
    for name, columns in _TRUTH.items():
        if name not in store.manifest.files:
            continue
        try:
            table = getattr(store, name.removesuffix(".arrow"))
        except StoreError as error:
            yield [Fault(name, error.message, AGAIN)]
            continue
        outside = [
            column
            for column in columns
            if table is not None and not _within(table[column], held.get(column, counts["captions.arrow"]))
        ]
        yield [Fault(name, f"rows that the store does not have in the column {column}", AGAIN) for column in outside]


def _within(column: pa.ChunkedArray, count: int) -> bool:
    chunks = (chunk.to_numpy() for chunk in column.chunks if len(chunk))
    return all(chunk.min() >= 0 and chunk.max() < count for chunk in chunks)


def shard_of(store: Store, level: Level, row: int) -> Shard:
    """Return the shard that holds the global `row` of a level, which the store must have."""
    shards = store.manifest.shards
    return next(s for s in shards if s.first_row(level) <= row < s.first_row(level) + s.rows(level))
