"""Stores written in a moment for tests of the stream: shards and captions alone, without images or features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stores import Manifest, Shard, Store
from stores.layout import Layout, shard_name
from stores.manifest import FeatureSet
from stores.tables import CAPTIONS, table_writer

DIGEST = "0" * 64


def write_store(root: Path, shards: Sequence[Sequence[int]]) -> Store:
    """Write captions.arrow for train shards whose samples have so many captions each, and open it as a store."""
    root.mkdir(parents=True, exist_ok=True)
    entries, first_sample, first_caption = [], 0, 0
    with table_writer(Layout(root).captions, CAPTIONS) as table:
        for number, counts in enumerate(shards):
            owners = np.repeat(first_sample + np.arange(len(counts)), counts)
            texts = pa.array([f"caption {first_caption + n}" for n in range(len(owners))], pa.large_string())
            table.write_batch(pa.record_batch([texts, pa.array(owners, pa.int64())], schema=CAPTIONS))
            entries.append(shard_entry(number, len(counts), len(owners), first_sample, first_caption))
            first_sample, first_caption = first_sample + len(counts), first_caption + len(owners)
    return Store(root, manifest(entries))


def shard_entry(number: int, samples: int, captions: int, first_sample: int, first_caption: int) -> Shard:
    """A train shard's entry in the manifest."""
    return Shard(
        name=shard_name("train", number),
        split="train",
        samples=samples,
        captions=captions,
        first_sample=first_sample,
        first_caption=first_caption,
        bytes=0,
        sha256=DIGEST,
    )


def vectors_entry(dim: int, fingerprint: str = DIGEST, parts: dict[str, str] | None = None) -> FeatureSet:
    """The manifest's entry of a teacher's vectors."""
    return FeatureSet(
        spec="t",
        modality="image",
        level="sample",
        shape=(dim,),
        unit=True,
        precision="fp32",
        fingerprint=fingerprint,
        parts=parts or {},
        invalid=0,
    )


def manifest(shards: Sequence[Shard]) -> Manifest:
    """A manifest of shards alone."""
    return Manifest(
        format_version=2,
        source={},
        source_fingerprint=DIGEST,
        files={},
        shards=tuple(shards),
        features={},
        indices={},
        parameters={},
        shared={},
    )
