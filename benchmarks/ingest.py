"""Sharding photographs on every core that may be used, against one core."""

from __future__ import annotations

import os
import shutil
import tempfile
from itertools import product
from pathlib import Path

from rich.progress import Progress

from benchmarks.extraction import PICTURES, listed
from benchmarks.measure import Result, in_turn
from pipeline.ingest import ingest
from pipeline.sources import open_source
from stores.cores import usable_cores
from stores.layout import Layout
from stores.parameters import Data

BOUND = 1.7
COPIES, ROUNDS = 8, 3


def benchmark() -> Result | None:
    """Measure; None where the pictures are absent, there is one core, or a process cannot be kept to one."""
    if not PICTURES.is_dir() or usable_cores() < 2 or not hasattr(os, "sched_setaffinity"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Result:
    pictures = folder / "pictures"
    pictures.mkdir()
    for path, copy in product(PICTURES.glob("*.jpg"), range(COPIES)):
        shutil.copyfile(path, pictures / f"{path.stem}-{copy}.jpg")
    data, count = listed(folder, pictures), len(list(pictures.iterdir()))
    every = os.sched_getaffinity(0)
    made: list[list[str]] = []

    def run(cores: set[int]) -> None:
        os.sched_setaffinity(0, cores)
        try:
            made.append(_sharded(data))
        finally:
            os.sched_setaffinity(0, every)

    ours, alone, ratio = in_turn(lambda: run(every), lambda: run({min(every)}), ROUNDS)
    same = all(shards == made[0] for shards in made)
    return Result(
        name=f"shard {count:,} photographs on {usable_cores()} cores, against one (shards "
        f"{'byte-identical' if same else 'that DIFFER'})",
        ours=count / ours,
        yardstick=count / alone,
        unit="images/s",
        ratio=1 / ratio,
        bound=f"≥ {BOUND}",
        kept=same and 1 / ratio >= BOUND,
    )


def _sharded(data: Data) -> list[str]:
    """Make the shards anew, and return their digests."""
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "store")
        layout.root.mkdir()
        return [shard.sha256 for shard in ingest(open_source(data), data, 256, layout, Progress(disable=True)).shards]


if __name__ == "__main__":
    print(benchmark())
