"""The tables of a store: samples, captions, classes, wrong pairs made on purpose, and what else the source knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.shards import StoredSample, read_shard
from pipeline.sources import Source
from pipeline.sources.noise import paired_images
from pipeline.sources.records import KnowsTruth
from pipeline.unplanned import check_known
from stores import Manifest, Shard, SourceError, StoreError, tables
from stores.atomic import atomic_path
from stores.layout import Layout
from stores.manifest import withdraw_manifest
from stores.ownership import is_plain
from stores.parameters import Noise


def write_tables(shards: Sequence[Shard], layout: Layout) -> None:
    """Write samples.arrow and captions.arrow from the shards, one batch of rows a shard."""
    batches = table_batches(shards, layout)
    with (
        tables.table_writer(layout.samples, tables.SAMPLES) as samples,
        tables.table_writer(layout.captions, tables.CAPTIONS) as captions,
    ):
        for number in range(len(shards)):
            for writer, batch in zip((samples, captions), batches(number), strict=True):
                writer.write_batch(batch)


def table_batches(shards: Sequence[Shard], layout: Layout) -> Callable[[int], tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Return what reads the rows of a shard, by its number, as batches of samples.arrow and of captions.arrow."""
    # Arrow's files hold one dictionary a column, so all names are in it from the first batch on.
    splits = pa.array(dict.fromkeys(shard.split for shard in shards))
    names = pa.array([shard.name for shard in shards])

    def batches(number: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        shard = shards[number]
        stored = list(read_shard(layout.shard(shard.name)))
        split = splits.index(shard.split).as_py()
        codes = {"split": _repeated(split, len(stored), splits), "shard": _repeated(number, len(stored), names)}
        samples = pa.record_batch({**_sample_columns(shard, stored), **codes}, schema=tables.SAMPLES)
        return samples, pa.record_batch(_caption_columns(shard, stored), schema=tables.CAPTIONS)

    return batches


def _repeated(code: int, count: int, names: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.full(count, code, dtype=np.int32)), names)


def _sample_columns(shard: Shard, samples: Sequence[StoredSample]) -> dict[str, Any]:
    counts = [len(sample.captions) for sample in samples]
    same = ("key", "source_id", "image_sha256", "image_offset", "image_bytes", "width", "height", "label")
    return {
        **{name: [getattr(sample, name) for sample in samples] for name in same},
        "caption_first": shard.first_caption + np.cumsum([0, *counts[:-1]]),
        "caption_count": counts,
    }


def _caption_columns(shard: Shard, samples: Sequence[StoredSample]) -> dict[str, Any]:
    rows = np.arange(shard.first_sample, shard.first_sample + len(samples))
    return {
        "text": [text for sample in samples for text in sample.captions],
        "sample": np.repeat(rows, [len(sample.captions) for sample in samples]),
    }


def check_classes(before: Manifest | None, layout: Layout) -> None:
    """See that classes.arrow is the store's own: the manifest names one, or it has the classes of samples.arrow.

    Raises:
        StoreError: a person's file lies in its place.
    """
    if before is not None and layout.classes.name in before.files:
        return
    try:
        named = tables.read_table(layout.classes, tables.CLASSES)["name"].to_pylist()
        own = is_plain(layout.classes) and named == _class_names(layout)
    except StoreError:
        own = False
    if not own:
        check_known([layout.classes], before)


def _class_names(layout: Layout) -> list[str]:
    labels = tables.read_table(layout.samples, tables.SAMPLES)["label"]
    return sorted(name for name in pc.unique(labels).to_pylist() if name is not None)


def write_classes(layout: Layout) -> None:
    """Write classes.arrow from the samples' labels, if they have any."""
    names = _class_names(layout)
    if not names:
        return
    with tables.table_writer(layout.classes, tables.CLASSES) as classes:
        classes.write_batch(pa.record_batch({"name": names}, schema=tables.CLASSES))


def count_classes(layout: Layout) -> int:
    """Return how many classes the store has."""
    return len(tables.read_table(layout.classes, tables.CLASSES)) if layout.classes.is_file() else 0


def write_truth(source: Source, first_keys: dict[str, int], shards: Sequence[Shard], layout: Layout) -> None:
    """Write what the source knows of relevance and similarity, in global rows, or remove what it no longer knows."""
    if not isinstance(source, KnowsTruth):
        for path in (layout.relevance, layout.caption_pairs):
            path.unlink(missing_ok=True)
        return
    keys = pc.cast(tables.read_table(layout.samples, tables.SAMPLES)["key"], pa.int64()).to_numpy()
    with (
        tables.table_writer(layout.relevance, tables.RELEVANCE) as relevance,
        tables.table_writer(layout.caption_pairs, tables.CAPTION_PAIRS) as pairs,
    ):
        for split, of_split in groupby(shards, key=lambda shard: shard.split):
            run = list(of_split)
            kept = keys[run[0].first_sample : run[-1].first_sample + run[-1].samples] - first_keys[split]
            truth = source.truth(split, kept.tolist())
            columns = {
                "caption": truth.relevance[:, 0] + run[0].first_caption,
                "sample": truth.relevance[:, 1] + run[0].first_sample,
            }
            relevance.write_batch(pa.record_batch(columns, schema=tables.RELEVANCE))
            graded = {
                "first": truth.caption_pairs[:, 0].astype(np.int64) + run[0].first_caption,
                "second": truth.caption_pairs[:, 1].astype(np.int64) + run[0].first_caption,
                "similarity": truth.caption_pairs[:, 2],
            }
            pairs.write_batch(pa.record_batch(graded, schema=tables.CAPTION_PAIRS))


def ensure_pairing(noise: Noise, shards: Sequence[Shard], layout: Layout, before: Manifest | None) -> None:
    """Bring pairing.arrow, the sample that each caption is paired with, up to the noise that is wanted.

    It is removed where none is; a file that is right stays. Some 24 bytes a caption are held in memory meanwhile.

    Raises:
        SourceError: there is no split "train", or the index file does not fit it.
        StoreError: a person's file lies in its place.
    """
    path = layout.pairing
    wanted = noise.ratio > 0 or noise.file is not None
    content = _pairing_bytes(_paired(noise, shards, layout), shards) if wanted else None
    if (path.read_bytes() if path.is_file() else None) == content:
        return
    check_known([path], before)
    withdraw_manifest(layout)
    if content is None:
        path.unlink()
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _paired(noise: Noise, shards: Sequence[Shard], layout: Layout) -> NDArray[np.int64]:
    """Return the sample row that each caption of the store is paired with: (captions,)."""
    owners: NDArray[np.int64] = tables.read_table(layout.captions, tables.CAPTIONS)["sample"].to_numpy().copy()
    train = [shard for shard in shards if shard.split == "train"]
    if not train:
        found = ", ".join(dict.fromkeys(shard.split for shard in shards))
        raise SourceError("data.noise is for training", where="splits", found=found, expected="train among them")
    first, samples = train[0].first_sample, sum(shard.samples for shard in train)
    run = slice(train[0].first_caption, train[-1].first_caption + train[-1].captions)
    owners[run] = first + paired_images(owners[run] - first, samples, noise)
    return owners


def _pairing_bytes(owners: NDArray[np.int64], shards: Sequence[Shard]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, tables.PAIRING) as table:
        for shard in shards:
            rows = owners[shard.first_caption : shard.first_caption + shard.captions]
            table.write_batch(pa.record_batch([pa.array(rows)], schema=tables.PAIRING))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
