"""Host memory does not grow with the data set: features are pages that all processes share, pairs a window at a time.

What counts is anonymous memory (RssAnon): pages of mapped files are the system's, which takes them back when it likes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from written_stores import DIGEST, manifest, shard_entry, vectors_entry

from stores import Store
from stores.features import PART_FORMAT
from stores.layout import Layout, shard_name
from stores.tables import CAPTIONS, table_writer
from train.data.mixture import MixedFeatures
from train.data.numbers import Numbers
from train.data.pairing import Pairing
from train.data.passes import Passes, Unusable
from train.data.shares import MixtureShares
from train.data.stream import PairStream

ROWS, DIM, BATCH = 2**21, 512, 1024
"""2 GiB of float16."""
STRIDE = 16
MIB = 2**20


def anonymous() -> int:
    """Bytes of this process's memory that belong to no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("the system does not tell RssAnon")
    return int(found[1]) * 1024


def write_sparse_part(path: Path) -> None:
    """Write a feature part of which only the last rows are not a hole of the file; they hold ones."""
    path.parent.mkdir(parents=True)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind, space = h5py.h5t.py_create(np.dtype(np.float16)), h5py.h5s.create_simple((ROWS, DIM))
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["teacher_fingerprint"] = PART_FORMAT, DIGEST
        file.attrs["shard_sha256"] = DIGEST
        features = h5py.Dataset(h5py.h5d.create(file.id, b"features", kind, space, layout))
        features[-BATCH:] = 1.0
        file["valid"] = np.ones(ROWS, dtype=bool)


def host_features(root: Path) -> MixedFeatures:
    """Open the features that `write_sparse_part` wrote, as a training opens them."""
    teacher = vectors_entry(DIM, DIGEST)
    made = manifest([shard_entry(0, ROWS, 0, 0, 0)])
    store = Store(root, type(made)(**{**vars(made), "features": {"t": teacher}}))
    return MixedFeatures([store.features("t")], Numbers([store], "train", "sample"))


class Gathers(Dataset[tuple[int, int, Tensor]]):
    """Batches of rows from all over the file, one row in 16 KiB: worker, its anonymous memory, the features."""

    def __init__(self, features: MixedFeatures) -> None:
        self.features = features
        self.rows = np.random.default_rng(0).permutation(np.arange(0, ROWS, STRIDE)).reshape(-1, BATCH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[int, int, Tensor]:
        features = torch.from_numpy(self.features.gather(self.rows[number]))
        worker = get_worker_info()
        return (worker.id if worker else 0), anonymous(), features


def gather_everything(root: str, workers: str) -> None:
    """Gather over the whole file, and fail where memory grows; runs in a process of its own."""
    looks: dict[int, list[int]] = {}
    total = 0
    gathers = Gathers(host_features(Path(root)))
    before = anonymous()
    for worker, memory, features in DataLoader(gathers, batch_size=None, shuffle=False, num_workers=int(workers)):
        looks.setdefault(worker, [before] if workers == "0" else []).append(memory)
        total += np.count_nonzero(features.numpy())
    click.echo(f"processes {len(looks)} ones {total} growth {max(max(seen) - seen[0] for seen in looks.values())}")


def stream_everything(root: str, shards: str) -> None:
    """Write a store of so many shards and go through an epoch of it; runs in a process of its own."""
    size = 1000
    texts = pa.array(["a"] * size, pa.large_string())
    with table_writer(Layout(Path(root)).captions, CAPTIONS) as table:
        for number in range(int(shards)):
            owners = number * size + np.arange(size)
            table.write_batch(pa.record_batch([texts, pa.array(owners)], schema=CAPTIONS))
    entries = [shard_entry(n, size, size, n * size, n * size) for n in range(int(shards))]
    store, none = Store(Path(root), manifest(entries)), np.empty(0, dtype=np.int64)
    before, most, seen = anonymous(), 0, 0
    pairing = Pairing(store, "train")
    passes = Passes(store, "train", Unusable(none, none), pairing, captions="one", shuffle_shards=16, seed=(0, 0))
    for draw in PairStream([passes], MixtureShares(()), batch_size=1000):
        seen += len(draw.samples)
        if seen % 100_000 == 0:
            most = max(most, anonymous())
    click.echo(f"seen {seen} growth {most - before}")


def outcome(call: str, *arguments: object) -> dict[str, int]:
    """Call a function of this file in a fresh process; return the numbers that it prints, by name."""
    tests = Path(__file__).resolve().parent
    code = f"import sys, test_memory; test_memory.{call}(*sys.argv[1:])"
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def test_gathering_from_a_feature_file_of_2_gb_takes_no_memory(tmp_path: Path) -> None:
    part = Layout(tmp_path).features("t", shard_name("train", 0))
    write_sparse_part(part)
    assert part.stat().st_size > ROWS * DIM * 2
    assert part.stat().st_blocks * 512 < 64 * MIB
    for workers in (0, 2):
        found = outcome("gather_everything", tmp_path, workers)
        assert found["processes"] == max(1, workers)
        assert found["ones"] == BATCH // STRIDE * DIM
        assert found["growth"] < 64 * MIB


def test_the_pairs_of_two_million_captions_take_no_memory(tmp_path: Path) -> None:
    found = outcome("stream_everything", tmp_path, 2000)
    assert found["seen"] == 2_000_000
    assert found["growth"] < 8 * MIB  # four bytes a caption
