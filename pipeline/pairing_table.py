"""pairing.arrow: the sample that each caption is paired with, where wrong pairs are made on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.noise import paired_images
from pipeline.unplanned import check_known
from stores import Manifest, Shard, SourceError, tables
from stores.atomic import atomic_path
from stores.layout import Layout
from stores.manifest import withdraw_manifest
from stores.parameters import Noise


def ensure_pairing(noise: Noise, shards: Sequence[Shard], layout: Layout, before: Manifest | None) -> None:
    """Bring pairing.arrow up to the noise that is wanted, or remove it where none is; a file that is right stays.

    Some 24 bytes a caption are held in memory meanwhile.

    Raises:
        SourceError: there is no split "train", or the index file does not fit it.
        StoreError: a person's file lies in its place.
    """
    path = layout.pairing
    wanted = noise.ratio > 0 or noise.file is not None
    content = _content(_paired(noise, shards, layout), shards) if wanted else None
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


def _content(owners: NDArray[np.int64], shards: Sequence[Shard]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, tables.PAIRING) as table:
        for shard in shards:
            rows = owners[shard.first_caption : shard.first_caption + shard.captions]
            table.write_batch(pa.record_batch([pa.array(rows)], schema=tables.PAIRING))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
