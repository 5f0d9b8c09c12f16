"""Heads on stored features of 100,000 rows and four modalities: a whole training step against its matrix products.

The yardstick is what the step cannot do without: the products of the heads and of the similarities of every two
modalities, forward and backward, in the same sizes and precision. Ours reads the rows, too, and has normalisation,
softmax both ways, clipping and AdamW. Memory is measured in a process of its own, for a tenth of the rows and for all.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import Result, accelerator_of, in_turn
from models.heads import with_widths
from stores import Manifest, Shard, Store, TrainParameters
from stores.features import PartOrigin, write_part
from stores.hardware import resolve_device
from stores.layout import Layout, shard_name
from stores.manifest import FeatureSet
from stores.modality import Level
from stores.parameters import Head, Loss, Student, Teachers, Train
from stores.tables import CAPTIONS, table_writer
from train.fit.processes import Processes
from train.fit.stops import Stop
from train.fit.trainer import Training

ROWS, FEW, BATCH, DIM = 100_000, 10_000, 1024, 512
MODALITIES: dict[str, tuple[Level, int]] = {
    "image": ("sample", 512),
    "text": ("caption", 768),
    "attributes": ("sample", 312),
    "speech": ("caption", 768),
}
SHARDS, STEPS, ROUNDS = 10, 3, 3
TIME_BOUND, MEMORY_BOUND = 1.5, 1.1
_DIGEST = "0" * 64


def benchmark() -> list[Result]:
    """Measure time on the machine's own device, and memory on the host."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = (pool.apply(_held, (rows,)) for rows in (FEW, ROWS))
    return [_time(), _memory(few, many)]


def _time() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        training = _training(Path(folder), ROWS)
        batches, products = iter(training.data.loader), _Products(resolve_device("auto"))

        def ours() -> None:
            for _ in range(STEPS):
                total = training.step(next(batches))["total"]
            float(total)

        seconds, yardstick, ratio = in_turn(ours, lambda: [products.step() for _ in range(STEPS)], ROUNDS)
    return Result(
        name=f"PCMC step of heads on {len(MODALITIES)} modalities of {ROWS:,} rows at batch {BATCH:,} × {DIM}, fp32, "
        f"rows read included, against its matrix products",
        ours=BATCH * STEPS / seconds,
        yardstick=BATCH * STEPS / yardstick,
        unit="rows/s",
        ratio=ratio,
        bound=f"≤ {TIME_BOUND} in time",
        kept=ratio <= TIME_BOUND,
    )


def _memory(few: int, many: int) -> Result:
    return Result(
        name=f"memory of such a training on {ROWS:,} rows, against one on {FEW:,}",
        ours=many / 2**20,
        yardstick=few / 2**20,
        unit="MiB",
        ratio=many / few,
        bound=f"≤ {MEMORY_BOUND}",
        kept=many / few <= MEMORY_BOUND,
    )


class _Products:
    """The matrix products of a step: three of each head and of every two modalities."""

    def __init__(self, device: torch.device) -> None:
        self._inputs = {name: torch.randn(BATCH, width, device=device) for name, (_, width) in MODALITIES.items()}
        self._weights = {name: torch.randn(width, DIM, device=device) for name, (_, width) in MODALITIES.items()}
        self._slope = torch.randn(BATCH, BATCH, device=device)

    def step(self) -> None:
        encoded = {name: given @ self._weights[name] for name, given in self._inputs.items()}
        for first, second in combinations(encoded, 2):
            encoded[first] @ encoded[second].T, self._slope @ encoded[second], self._slope.T @ encoded[first]
        for name, given in self._inputs.items():
            given.T @ encoded[name], encoded[name] @ self._weights[name].T


def _held(rows: int) -> int:
    """Return the bytes of its own that a process holds after some steps, without the maps of files."""
    with tempfile.TemporaryDirectory() as folder:
        training = _training(Path(folder), rows)
        batches = iter(training.data.loader)
        for _ in range(STEPS):
            training.step(next(batches))
        return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def _training(folder: Path, rows: int) -> Training:
    store = _store(folder / "store", rows)
    student = Student(model="heads", dim=DIM, heads={name: Head(features=name) for name in MODALITIES})
    train = Train(batch_size=BATCH, epochs=1000, precision="fp32")
    parameters = TrainParameters(
        teachers=Teachers(image="image", text="text"),
        student=with_widths(student, store),
        loss=Loss(original="pcmc", alpha=0.0, beta=0.0),
        train=train,
    )
    accelerator = accelerator_of(resolve_device("auto"))
    return Training(folder, store, parameters, "benchmark", accelerator, Stop(Processes(accelerator)))


def _store(root: Path, rows: int) -> Store:
    """Return a store of captions and features alone, one caption a sample; a tenth of the speech is absent.

    All shards hold the same numbers: making others for each would take longer than what is measured.
    """
    root.mkdir(parents=True)
    layout, each, random = Layout(root), rows // SHARDS, np.random.default_rng(0)
    origin = PartOrigin(teacher_fingerprint=_DIGEST, shard_sha256=_DIGEST)
    values, shards = (
        {
            name: random.standard_normal((each, width), dtype=np.float32).astype(np.float16)
            for name, (_, width) in MODALITIES.items()
        },
        [],
    )
    with table_writer(layout.captions, CAPTIONS) as captions:
        for number in range(SHARDS):
            first, name = number * each, shard_name("train", number)
            texts = pa.array([""] * each, pa.large_string())
            captions.write_batch(pa.record_batch([texts, pa.array(np.arange(first, first + each))], schema=CAPTIONS))
            for modality, numbers in values.items():
                valid = random.random(each) >= (0.1 if modality == "speech" else 0.0)
                write_part(layout.features(modality, name), numbers * valid[:, None], valid, origin)
            ends = {"samples": each, "captions": each, "first_sample": first, "first_caption": first, "bytes": 0}
            shards.append(Shard(name=name, split="train", sha256=_DIGEST, **ends))
    features = {
        name: FeatureSet(
            spec=name,
            modality=name,
            level=level,
            shape=(width,),
            unit=False,
            precision="fp32",
            fingerprint=_DIGEST,
            parts={},
            invalid=0,
        )
        for name, (level, width) in MODALITIES.items()
    }
    nothing: dict[str, object] = {"source": {}, "files": {}, "indices": {}, "parameters": {}, "shared": {}}
    return Store(
        root,
        Manifest(format_version=2, source_fingerprint=_DIGEST, shards=tuple(shards), features=features, **nothing),
    )
