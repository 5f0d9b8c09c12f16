"""What the soft labels cost: a CUSA step against an InfoNCE step of CLIP B/32, the join, and the wait for input.

Pictures and captions are real (the project's shared ones), teachers the embedded ones, weights random.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.extraction import PICTURES
from benchmarks.measure import Result, accelerator_of, in_turn, seconds
from pipeline.extract import extract
from stores import ExtractParameters, Store, TrainParameters
from stores.hardware import resolve_device, resolve_precision
from stores.parameters import Data, Extract, Loss, Student, Train
from train.data.batches import Batch, TrainingData
from train.fit.processes import Processes
from train.fit.stops import Stop
from train.fit.trainer import Training

STUDENT = "open-clip:ViT-B-32"
BATCH = {"cpu": 64, "cuda": 1024}
STEP_BOUND, JOIN_BOUND, WAIT_BOUND = 1.03, 0.01, 0.05
ROUNDS = 4
WAITS = 2
"""Steps over which the wait for input is measured."""


def benchmark() -> list[Result]:
    """Measure on the machine's own device; nothing where the pictures are absent."""
    if not PICTURES.is_dir():
        return []
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    accelerator = accelerator_of(device, precision)
    settings = Train(batch_size=BATCH[device.type], learning_rate=1e-5, epochs=1000, captions="all")
    with tempfile.TemporaryDirectory() as folder:
        store = small_store(Path(folder), pairs=(WAITS + 3) * settings.batch_size)

        stop = Stop(Processes(accelerator))

        def training(loss: Loss, **changes: float) -> Training:
            train = replace(settings, **changes)
            parameters = TrainParameters(student=Student(model=STUDENT), train=train, loss=loss)
            return Training(Path(folder), store, parameters, "benchmark", accelerator, stop)

        soft, plain = training(Loss()), training(Loss(alpha=0.0, beta=0.0))
        gathering = training(Loss(), device_table_gib=0.0, workers=1).data
        what = f"{STUDENT.partition(':')[2]} at batch {settings.batch_size:,}, {precision} on {device.type}"
        batch = next(iter(soft.data.loader))
        step = _step(soft, plain, batch, what)
        features = [store.features(slug) for slug in ("hog-color", "minilm")]
        numbers = [numbers.numpy() for numbers in batch.numbers.values()]
        gathered = statistics.median(
            seconds(lambda: [teacher.gather(rows) for teacher, rows in zip(features, numbers, strict=True)])
            for _ in range(20)
        )
        resident = batch.to(device)
        joined = statistics.median(seconds(lambda: soft.data.teachers(resident)) for _ in range(20))
        results = [step, _join(joined, gathered, step.ours, what), _wait(gathering, soft, step.ours, what)]
        gathering.close()
        return results


def small_store(folder: Path, pairs: int) -> Store:
    """Return a store of the pictures as published, each several times under captions of its own."""
    pictures = sorted(PICTURES.glob("*.jpg"))
    each = -(-pairs // len(pictures))
    entries = [
        {
            "filename": path.name,
            "split": "train",
            "sentences": [{"raw": f"picture {path.stem}, caption {n}"} for n in range(each)],
        }
        for path in pictures
    ]
    source = folder / "dataset.json"
    source.write_text(json.dumps({"images": entries}))
    data = Data(source=str(source), images=str(PICTURES))
    extract(ExtractParameters(data=data, extract=Extract(workers=0)), folder / "store")
    return Store.open(folder / "store")


def _step(soft: Training, plain: Training, batch: Batch, what: str) -> Result:
    ours, yardstick, ratio = in_turn(
        lambda: float(soft.step(batch)["total"]), lambda: float(plain.step(batch)["total"]), ROUNDS
    )
    return _result(f"CUSA step, {what}, join included, against its InfoNCE step", ours, yardstick, ratio, STEP_BOUND)


def _join(joined: float, gathered: float, step: float, what: str) -> Result:
    name = (
        f"join of a batch's features, table resident on the device ({joined * 1e6:,.0f} µs; gathered on the host by a "
        f"worker {gathered * 1e6:,.0f} µs), against the step, {what}"
    )
    return _result(name, joined, step, joined / step, JOIN_BOUND)


def _wait(data: TrainingData, soft: Training, step: float, what: str) -> Result:
    """Measure how long a step waits for its batch; the first is left out: the worker has just started."""
    batches = iter(data.loader)
    float(soft.step(next(batches))["total"])
    waits = []
    for _ in range(WAITS):
        fetched: list[Batch] = []
        waits.append(seconds(lambda fetched=fetched: fetched.append(next(batches))))  # type: ignore[misc]
        float(soft.step(fetched[0])["total"])  # which waits for the device
    wait = float(np.mean(waits))
    return _result(
        f"wait for input in each step, one worker, {what}, against the step", wait, step, wait / step, WAIT_BOUND
    )


def _result(name: str, ours: float, yardstick: float, ratio: float, bound: float) -> Result:
    return Result(
        name=name, ours=ours, yardstick=yardstick, unit="s", ratio=ratio, bound=f"≤ {bound}", kept=ratio <= bound
    )
