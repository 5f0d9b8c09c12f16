"""Pictures that several samples of a store show: in two splits (trained on and tested), or in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.first_seen import first_seen
from stores import Manifest, Shard, tables
from stores.layout import Layout


def shared_pictures(layout: Layout, shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """Count the samples of each split whose picture came before: {split: {where it came first: samples}}.

    Where it came first is an earlier split, or the split itself. Pictures are compared by their bytes, on disk.
    """
    counts: dict[str, Counter[str]] = {}
    batches = tables.open_batches(layout.samples, tables.SAMPLES)
    starts = np.array([shard.first_sample for shard in shards])
    with first_seen(layout.root) as seen:
        for number, shard in enumerate(shards):
            digests = [
                digest or f"\0{place}"  # a sample without an image is like no other
                for place, digest in enumerate(
                    batches.get_batch(number)["image_sha256"].to_pylist(), shard.first_sample
                )
            ]
            firsts = seen.rows(digests, shard.first_sample)
            earlier = firsts[firsts != shard.first_sample + np.arange(len(firsts))]
            owners = np.searchsorted(starts, earlier, side="right") - 1
            counts.setdefault(shard.split, Counter()).update(shards[owner].split for owner in owners)
    return {split: dict(sorted(found.items())) for split, found in counts.items() if found}


def picture_lines(manifest: Manifest) -> list[str]:
    """Say how many records were merged, and which pictures stand in several splits or several times in one."""
    joined = ", ".join(f"{split} {count:,}" for split, count in manifest.merged.items())
    merged = [f"records that joined another one of the same picture (data.merge): {joined}"] if joined else []
    return merged + shared_lines(manifest)


def shared_lines(manifest: Manifest) -> list[str]:
    """Say which pictures stand in several splits, or several times in one: a sentence for each pair of splits."""
    return [
        f"{count:,} of {manifest.rows(split, 'sample'):,} samples of {split} show a picture that "
        + (f"stands in {earlier} too" if earlier != split else "another of them shows; data.merge=bytes joins these")
        for split, found in (manifest.shared or {}).items()
        for earlier, count in found.items()
    ]
