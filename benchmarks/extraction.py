"""Extracting image features end to end, from shards to HDF5 parts, against the same model's pure forward pass."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from rich.progress import Progress

from benchmarks.measure import Result, in_turn
from models.teachers import Teacher, TeacherSpec
from models.teachers.unicom import MODELS, UnicomViT
from pipeline.batch_size import batch_size
from pipeline.encode import extract_features
from pipeline.encode.engine import InProcess
from pipeline.ingest import ingest
from pipeline.sources import open_source
from stores import Shard
from stores.images import Images
from stores.layout import Layout
from stores.parameters import Data, Extract

PICTURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-original-size"
BOUND = 0.95
ROUNDS = 3


def benchmark() -> Result | None:
    """Measure with a random-weight Unicom B/32; None where the pictures are absent."""
    if not PICTURES.is_dir():
        return None
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), PICTURES, "auto")


def measure(folder: Path, pictures: Path, device: str) -> Result:
    """Measure on a folder of JPEGs; the store and the weights lie in `folder`."""
    data = listed(folder, pictures)
    layout, settings = Layout(folder / "store"), Extract()
    quiet = Progress(disable=True)
    layout.root.mkdir()
    shards = ingest(open_source(data), data, settings.shard_size, layout, quiet).shards
    engine = InProcess(random_unicom(folder), settings, device)
    teacher = engine.teacher
    ready = _ready_batches(teacher, layout, shards, batch_size(teacher, settings))
    count = sum(shard.samples for shard in shards)
    end_to_end, forward, ratio = in_turn(
        lambda: extract_features(engine, shards, shards, layout, settings, quiet),
        lambda: [teacher.encode(batch) for batch in ready],
        ROUNDS,
    )
    return Result(
        name=f"extract features of {count} pictures end to end, Unicom B/32 in {teacher.precision} on "
        f"{teacher.device.type}, against its forward pass",
        ours=count / end_to_end,
        yardstick=count / forward,
        unit="images/s",
        ratio=1 / ratio,
        bound=f"≥ {BOUND}",
        kept=1 / ratio >= BOUND,
    )


def listed(folder: Path, pictures: Path) -> Data:
    """Return a data set of a folder of JPEGs, each with its name for a caption; its list lies in `folder`."""
    entries = [
        {"filename": path.name, "split": "test", "sentences": [{"raw": path.stem}]} for path in pictures.glob("*.jpg")
    ]
    source = folder / "dataset.json"
    source.write_text(json.dumps({"images": sorted(entries, key=lambda entry: str(entry["filename"]))}))
    return Data(source=str(source), images=str(pictures))


def random_unicom(folder: Path) -> TeacherSpec:
    """Return a Unicom B/32 of random weights, which `folder` holds."""
    torch.manual_seed(0)
    torch.save(UnicomViT(MODELS["ViT-B/32"]).state_dict(), folder / "unicom.pt")
    return TeacherSpec(spec="unicom:ViT-B/32", weights=str(folder / "unicom.pt"), modality="image")


def _ready_batches(teacher: Teacher, layout: Layout, shards: tuple[Shard, ...], size: int) -> list[torch.Tensor]:
    images = Images(layout, shards)
    ready = [teacher.preprocess_file(images[row]) for row in range(len(images))]
    return [teacher.collate(ready[start : start + size]).to(teacher.device) for start in range(0, len(ready), size)]
