"""Gathering 256 random rows of 768 × float16 from a store of 100,000 rows, against a plain numpy memmap."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Result, in_turn
from stores import Features, Shard
from stores.features import PartOrigin, write_part
from stores.layout import Layout, shard_name
from stores.manifest import FeatureSet

ROWS, DIM, BATCH, REPEATS = 100_000, 768, 256, 50
BOUND = 1.5


def benchmark(parts: int) -> Result:
    """Measure a store whose rows lie in `parts` files."""
    table = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float16)
    batches = np.random.default_rng(1).integers(ROWS, size=(REPEATS, BATCH))
    with tempfile.TemporaryDirectory() as folder:
        features = _store(Path(folder), table, parts)
        plain_path = Path(folder) / "plain"
        table.tofile(plain_path)
        plain = np.memmap(plain_path, dtype=np.float16, mode="r", shape=(ROWS, DIM))
        if not (features.gather(batches[0]) == plain[batches[0]]).all():
            raise AssertionError("the store and the memmap disagree")
        ours, yardstick, ratio = in_turn(
            lambda: [features.gather(rows) for rows in batches], lambda: [plain[rows] for rows in batches], 15
        )
    return Result(
        name=f"gather {BATCH} of {ROWS:,} rows of {DIM} × float16, {parts} part{'s' if parts > 1 else ''}, "
        f"against a numpy memmap",
        ours=ours / REPEATS * 1e6,
        yardstick=yardstick / REPEATS * 1e6,
        unit="µs",
        ratio=ratio,
        bound=f"≤ {BOUND}",
        kept=ratio <= BOUND,
    )


def _store(folder: Path, table: np.ndarray, parts: int) -> Features:
    layout, count, digest = Layout(folder), ROWS // parts, "0" * 64
    origin = PartOrigin(teacher_fingerprint=digest, shard_sha256=digest)
    shards = []
    for number in range(parts):
        first = number * count
        name = shard_name("train", number)
        write_part(layout.features("t", name), table[first : first + count], np.ones(count, bool), origin)
        shards.append(
            Shard(
                name=name,
                split="train",
                samples=count,
                captions=0,
                first_sample=first,
                first_caption=0,
                bytes=0,
                sha256=digest,
            )
        )
    teacher = FeatureSet(
        spec="t",
        modality="image",
        level="sample",
        shape=(DIM,),
        unit=True,
        precision="fp32",
        fingerprint=digest,
        parts={},
        invalid=0,
    )
    return Features(layout, "t", tuple(shards), teacher)
