"""What a device is for, timed: extraction end to end, texts, steps, the objective in tiles, a network of pairs."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import extraction, sgraf, texts
from benchmarks.large_batch import Pairs
from benchmarks.measure import one_thread, seconds, timed
from models.aligned import AlignedModel
from models.inputs import Padded
from models.students import load_student
from stores.hardware import resolve_precision
from stores.parameters import Extract, Loss, Student
from train.fit.optimisation import Learner
from train.losses import tiles
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective

ROUNDS: Final = 5


class Sizes(Protocol):
    """How much is computed."""

    pictures: int
    texts: int
    batch: int
    student: str
    pairs: int
    scored: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Time:
    """One figure."""

    name: str
    value: float
    unit: str


def images(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time Unicom B/32 from shards to parts, its forward pass alone, and preparing files on one core."""
    with tempfile.TemporaryDirectory() as folder:
        end_to_end = extraction.measure(Path(folder), pictures, str(device))
        teacher = extraction.random_unicom(Path(folder)).load("cpu", "fp32")
        files = [path.read_bytes() for path in _some(pictures)]
        with one_thread():
            prepared = seconds(lambda: [teacher.preprocess_file(data) for data in files])
    yield Time(name="Unicom B/32, end to end", value=end_to_end.ours, unit="images/s")
    yield Time(name="Unicom B/32, forward pass", value=end_to_end.yardstick, unit="images/s")
    yield Time(name="end to end over forward pass", value=end_to_end.ratio, unit="")
    yield Time(name="preparing files, one core", value=len(files) / prepared, unit="images/s")


def decoding(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time decoding alone: by libjpeg on one core, and by nvJPEG where the device is CUDA."""
    files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in _some(pictures)]
    ways = {"libjpeg on one core": torch.device("cpu")}
    if device.type == "cuda":
        ways["nvJPEG"] = device
    else:
        print(f"Decoding by nvJPEG is not timed: it wants a CUDA device, not {device}.")
    for name, where in ways.items():
        decode = partial(decode_jpeg, files, ImageReadMode.RGB, where)
        decode()
        yield Time(name=f"decoding files by {name}", value=len(files) / seconds(decode), unit="images/s")


def _some(pictures: Path) -> list[Path]:
    return sorted(pictures.glob("*.jpg"))[:256]


def captions(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time MiniLM on different captions of natural length."""
    with tempfile.TemporaryDirectory() as folder:
        said = [f"picture number {n} shows {'a dog beside ' * (n % 5)}a house" for n in range(sizes.texts)]
        engine, run = texts.end_to_end(Path(folder), said, Extract(), str(device))
        run()
        yield Time(
            name=f"MiniLM in {engine.teacher.precision}, end to end", value=len(said) / seconds(run), unit="texts/s"
        )


def steps(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time a step of the student with the CUSA objective over one with InfoNCE alone: forward, backward, AdamW."""
    what = f"{sizes.student} at batch {sizes.batch:,}"
    soft, plain = (_Step(device, sizes, loss) for loss in (Loss(), Loss(alpha=0.0, beta=0.0)))
    soft(), plain()
    rounds = [(seconds(soft), seconds(plain)) for _ in range(ROUNDS)]
    for name, taken in zip(("CUSA", "InfoNCE"), zip(*rounds, strict=True), strict=True):
        yield Time(name=f"{name} step, {what}", value=statistics.median(taken), unit="s")
    ratio = statistics.median(one / other for one, other in rounds)
    yield Time(name=f"CUSA step over InfoNCE step, {what}", value=ratio, unit="")


class _Step:
    def __init__(self, device: torch.device, sizes: Sizes, loss: Loss) -> None:
        torch.manual_seed(0)
        student = load_student(Student(model=sizes.student))
        self._learner = Learner(AlignedModel(student), make_objective(loss)).to(device).train()
        side = student.eval_transform.transforms[1].size[0]
        tokens = student.tokenizer(["a dog beside a house"] * sizes.batch).to(device)
        image = torch.randn(sizes.batch, 3, side, side, device=device)
        self._inputs: dict[str, Any] = {"image": image, "text": Padded(tokens, tokens >= 0)}
        self._teachers = {
            name: torch.randn(sizes.batch, dim, device=device) for name, dim in (("image", 512), ("text", 768))
        }
        self._rows = torch.arange(sizes.batch, device=device)
        self._optimiser = torch.optim.AdamW(self._learner.parameters(), lr=1e-5)
        bf16 = resolve_precision("auto", device) == "bf16"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def __call__(self) -> None:
        with self._autocast:
            items = Instances(self._learner(self._inputs), self._rows, self._rows, self._teachers)
            total, _ = compare(self._learner.objective, items, items, self._learner.model.scorer)
        total.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()


def tiled_objective(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time the objective in tiles, forward and backward, at a batch that no plain form holds."""
    pairs = Pairs(device, sizes.pairs)
    pairs.step(tiles.ELEMENTS)
    taken = seconds(lambda: pairs.step(tiles.ELEMENTS))
    yield Time(name=f"objective of {sizes.pairs:,} pairs in tiles", value=taken, unit="s")


def scored_pairs(device: torch.device, sizes: Sizes, pictures: Path) -> Iterator[Time]:
    """Time SGR and SAF over pairs in float32 and bf16, and tell how many captions then find another image first."""
    images, texts = sizes.scored
    for kind in ("SGR", "SAF"):
        model, image, text = sgraf.made(kind, device, images, texts)
        rows = torch.arange(images, device=device)
        found = {}
        for precision in ("fp32", "bf16"):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                sgraf.scored(model, image.take(rows[:8]), text)
                scores, taken = timed(partial(sgraf.scored, model, image, text))
            found[precision] = scores.float().cpu()
            yield Time(name=f"{kind}, {precision}", value=images * texts / taken, unit="pairs/s")
            yield Time(
                name=f"{kind}, {precision}, all pairs of COCO 5K", value=125e6 * taken / (images * texts), unit="s"
            )
        first, other = (scores.argmax(dim=0) for scores in found.values())
        yield Time(
            name=f"{kind}, captions whose first image bf16 changes, of a model with random weights",
            value=100 * float((first != other).float().mean()),
            unit="%",
        )


MEASURES: Final[tuple[Callable[[torch.device, Sizes, Path], Iterator[Time]], ...]] = (
    *(images, decoding, captions, steps, tiled_objective, scored_pairs),
)
