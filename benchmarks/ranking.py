"""All ranks and recalls both ways at the size of COCO 5K, against the matrix product that they need; and their memory.

Each measurement runs in a process of its own: its peak memory is its own, and so are its threads.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Result, in_turn
from stores.cores import usable_cores
from train.evaluation.evaluate import cross_modal
from train.evaluation.similarities import CosineSimilarities

IMAGES, CAPTIONS, DIM = 5000, 5, 512
LARGE = (100_000, 500_000)
SLICE = 2000
BOUND, MEMORY = 1.6, 300
ROUNDS = 5
BLOCK = 512
"""Rows of the product at a time: it stays in the cache, which a whole matrix would not."""


def benchmark() -> list[Result]:
    """Measure time and memory at COCO's size, and memory on a slice of a search of 100,000 × 500,000."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        speeds = {threads: pool.apply(_speed, (threads,)) for threads in (1, 2) if threads <= usable_cores()}
        memory, large = (pool.apply(work) for work in (_memory, _slice))
    size = f"{IMAGES:,} × {IMAGES * CAPTIONS:,}, {DIM}-d"
    # At most: the slice reads all captions once, and so does the whole.
    hours = large["seconds"] * LARGE[0] / SLICE / 3600
    return [
        *(
            Result(
                name=f"all ranks and recalls both ways, {size}, {threads} thread{'s' * (threads > 1)}, against the "
                f"matrix product in float32",
                ours=ours,
                yardstick=product,
                unit="s",
                ratio=ratio,
                bound=f"≤ {BOUND}",
                kept=ratio <= BOUND,
            )
            for threads, (ours, product, ratio) in speeds.items()
        ),
        _megabytes(f"peak memory beyond the embeddings, {size}, against the similarity matrix", memory, MEMORY),
        _megabytes(
            f"the same on {SLICE:,} × {LARGE[1]:,} (the whole of {LARGE[0]:,} × {LARGE[1]:,} would take "
            f"at most {hours:.2g} h), bound: the unit rows and {MEMORY} MB",
            large,
            MEMORY + (SLICE + LARGE[1]) * DIM * 4 / 1e6,
        ),
    ]


def _megabytes(name: str, measured: dict[str, float], bound: float) -> Result:
    ours, matrix = measured["megabytes"], measured["matrix"]
    kept = ours <= bound
    return Result(
        name=name, ours=ours, yardstick=matrix, unit="MB", ratio=ours / matrix, bound=f"≤ {bound:,.0f} MB", kept=kept
    )


def _speed(threads: int) -> tuple[float, float, float]:
    torch.set_num_threads(threads)
    images, texts, own = _case(IMAGES, IMAGES * CAPTIONS)
    one, other = (functional.normalize(side) for side in (images, texts))
    block = torch.empty(BLOCK, len(texts))

    def product() -> None:
        for rows in one.split(BLOCK):
            torch.mm(rows, other.T, out=block[: len(rows)])

    return in_turn(lambda: cross_modal(CosineSimilarities(images, texts), own), product, ROUNDS)


def _memory() -> dict[str, float]:
    images, texts, own = _case(IMAGES, IMAGES * CAPTIONS)
    return _watched(images, texts, own)


def _slice() -> dict[str, float]:
    images, texts, own = _case(SLICE, LARGE[1])
    return _watched(images, texts, own)


def _watched(images: Tensor, texts: Tensor, own: sparse.csr_array) -> dict[str, float]:
    """Return the seconds and megabytes of ranking, after a small call that loads what is loaded once."""
    few_images, few_texts, few = _case(64, 320)
    cross_modal(CosineSimilarities(few_images, few_texts), few)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.perf_counter()
    cross_modal(CosineSimilarities(images, texts), own)
    return {
        "seconds": time.perf_counter() - started,
        "megabytes": (_status("VmHWM") - before) / 1e6,
        "matrix": len(images) * len(texts) * 4 / 1e6,
    }


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def _case(images: int, texts: int) -> tuple[Tensor, Tensor, sparse.csr_array]:
    """Return embeddings that find most of what they should (R@1 of images about 99, of captions about 80)."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(texts) * images // texts
    image = torch.randn(images, DIM, generator=generator)
    text = torch.randn(texts, DIM, generator=generator).mul_(5).add_(image[owner])
    own = sparse.csr_array((np.ones(texts, dtype=bool), (owner.numpy(), np.arange(texts))), shape=(images, texts))
    return image, text, own


if __name__ == "__main__":
    for result in benchmark():
        print(result)
