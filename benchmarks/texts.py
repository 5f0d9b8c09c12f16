"""Extracting text features end to end, from captions.arrow to HDF5 parts, against `SentenceTransformer.encode`."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress
from sentence_transformers import SentenceTransformer

from benchmarks.measure import Result, in_turn, seconds
from models.packaged_weights import packaged_file
from models.teachers import TeacherSpec
from pipeline.encode import extract_features
from pipeline.encode.engine import InProcess
from pipeline.ingest import ingest
from pipeline.sources import open_source
from stores import Shard
from stores.layout import Layout
from stores.parameters import Data, Extract

CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"
SIZES = (32, 64, 128, 256)


def benchmark(repeated: bool) -> Result | None:
    """Measure MiniLM on 20,000 captions with natural repeats, or on 5,000 without; None where they are absent."""
    if not CAPTIONS.is_dir():
        return None
    captions = _captions()
    texts = _with_repeats(captions, 20_000) if repeated else sorted(set(captions))
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), texts, bound=1.5 if repeated else 1.1, rounds=1 if repeated else 3)


def _captions() -> list[str]:
    files = sorted(CAPTIONS.glob("captions_*.json"))
    return [str(entry["caption"]) for path in files for entry in json.loads(path.read_bytes())["annotations"]]


def _with_repeats(captions: Sequence[str], count: int) -> list[str]:
    """Draw captions as a larger collection of the kind would hold them: each about four times, in any order."""
    random.seed(0)
    return random.choices(captions, k=count)


def end_to_end(
    folder: Path, texts: Sequence[str], settings: Extract, device: str
) -> tuple[InProcess, Callable[[], None]]:
    """Return MiniLM and what extracts its features of the texts, from a store in `folder`."""
    layout, quiet = Layout(folder / "store"), Progress(disable=True)
    shards = _store(folder, texts, layout, quiet)
    engine = InProcess(TeacherSpec(spec="minilm", weights=None, modality="text"), settings, device)

    def run() -> None:
        extract_features(engine, shards, shards, layout, settings, quiet)

    return engine, run


def _measure(folder: Path, texts: Sequence[str], bound: float, rounds: int) -> Result:
    engine, run = end_to_end(folder, texts, Extract(precision="fp32"), "auto")
    plain = SentenceTransformer(str(packaged_file("minilm").parent), device=str(engine.teacher.device))
    sample = texts[:1000]
    best = min(SIZES, key=lambda size: seconds(lambda: plain.encode(sample, batch_size=size)))
    ours, theirs, ratio = in_turn(run, lambda: plain.encode(list(texts), batch_size=best), rounds)
    return Result(
        name=f"extract features of {len(texts):,} captions ({len(set(texts)):,} different) end to end, MiniLM in fp32 "
        f"on {engine.teacher.device.type}, against SentenceTransformer.encode at its best batch size, {best}",
        ours=len(texts) / ours,
        yardstick=len(texts) / theirs,
        unit="texts/s",
        ratio=1 / ratio,
        bound=f"≥ {bound}",
        kept=1 / ratio >= bound,
    )


def _store(folder: Path, texts: Sequence[str], layout: Layout, quiet: Progress) -> tuple[Shard, ...]:
    """Make a store of the texts, five to each of many tiny pictures."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "picture.png")
    table = folder / "pairs.jsonl"
    with table.open("w") as stream:
        for start in range(0, len(texts), 5):
            captions = list(texts[start : start + 5])
            stream.write(json.dumps({"id": str(start), "image": "picture.png", "caption": captions}) + "\n")
    data = Data(source=str(table))
    layout.root.mkdir()
    return ingest(open_source(data), data, 1000, layout, quiet).shards
