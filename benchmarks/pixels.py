"""From a photograph's file to a model's input on one core, by the fast path against the careful one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.extraction import PICTURES, random_unicom
from benchmarks.measure import Result, in_turn, one_thread
from models.teachers import Teacher
from stores.images import decode_rgb

BOUND, COSINE = 2.2, 0.9999
ROUNDS = 5


def benchmark() -> Result | None:
    """Measure by Unicom's transform, which is CLIP's too; features are of random weights. None without the pictures."""
    if not PICTURES.is_dir():
        return None
    files = [path.read_bytes() for path in sorted(PICTURES.glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_unicom(Path(folder)).load("cpu", "fp32")
    with one_thread():
        fast, careful, ratio = in_turn(
            lambda: [teacher.preprocess_file(data) for data in files],
            lambda: [teacher.preprocess(decode_rgb(data)) for data in files],
            ROUNDS,
        )
    cosine = _smallest_cosine(teacher, files)
    return Result(
        name=f"prepare {len(files)} photographs by the fast path on one core, against the careful one (smallest cosine "
        f"of their Unicom features {cosine:.6f}, at least {COSINE})",
        ours=len(files) / fast,
        yardstick=len(files) / careful,
        unit="images/s",
        ratio=1 / ratio,
        bound=f"≥ {BOUND}",
        kept=1 / ratio >= BOUND and cosine >= COSINE,
    )


def _smallest_cosine(teacher: Teacher, files: list[bytes]) -> float:
    features = [
        teacher.encode(teacher.collate(prepared))
        for prepared in (
            [teacher.preprocess_file(data) for data in files],
            [teacher.preprocess(decode_rgb(data)) for data in files],
        )
    ]
    return float(torch.cosine_similarity(*features).min())


if __name__ == "__main__":
    print(benchmark())
