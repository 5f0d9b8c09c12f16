"""A full CUSA step (join, both teachers' soft labels, CSA and USA) against an InfoNCE step of the same student."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from benchmarks.measure import Result, in_turn
from pipeline.extract import extract
from stores import ExtractParameters, Store, TrainParameters
from stores.hardware import resolve_device, resolve_precision
from stores.parameters import Data, Extract, Loss, Scenes, Student, Train
from train.trainer import Training

STUDENT, BATCH = "open-clip:ViT-S-32-alt", 64
BOUND = 1.05
ROUNDS = 9


def benchmark() -> Result:
    """Measure with CLIP ViT-S/32 at batch 64 on scenes, features joined from the store."""
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    parameters = TrainParameters(student=Student(model=STUDENT), train=Train(batch_size=BATCH, learning_rate=1e-5))
    with tempfile.TemporaryDirectory() as folder:
        scenes = Scenes(train=32, val=2, test=2)
        extract(ExtractParameters(data=Data(scenes=scenes), extract=Extract(workers=0)), Path(folder) / "store")
        store = Store.open(Path(folder) / "store")
        steps = []
        for loss in (Loss(), replace(Loss(), alpha=0.0, beta=0.0)):
            training = Training(Path(folder) / "run", store, parameters, loss, "benchmark", accelerator)
            batch = next(iter(training.loader))
            steps.append(lambda training=training, batch=batch: float(training.step(batch)["total"]))
        ours, yardstick, ratio = in_turn(*steps, ROUNDS)
    return Result(
        name=f"CUSA step, {STUDENT.partition(':')[2]} at batch {BATCH}, {precision} on {device.type}, "
        f"against its InfoNCE step",
        ours=ours,
        yardstick=yardstick,
        unit="s",
        ratio=ratio,
        bound=f"≤ {BOUND}",
        kept=ratio <= BOUND,
    )
