"""Training an index on a sample and adding all rows, block by block: memory is the index, a block and the sample.

The same features give the same bytes: the sample and the k-means have fixed seeds, and faiss adds to lists in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.indices.kinds import EXACT, new_index
from pipeline.indices.recall import QUERIES
from stores import Features
from stores.console import console
from stores.index import Index, faiss_reason

_BLOCK_BYTES: Final = 64 * 2**20
_SEED: Final = 0


@dataclass(frozen=True)
class Sample:
    """Rows drawn from those that an index will hold: some to train it, others to ask it."""

    training: NDArray[np.int64]
    queries: NDArray[np.int64]


def draw_sample(rows: NDArray[np.int64], training: int) -> Sample:
    """Draw up to `training` rows and 1,000 queries beside them, evenly over `rows` (n,); no row is in both.

    Where there are few rows, a tenth of them are queries and all others train.
    """
    queries = min(QUERIES, max(len(rows) // 10, 1), len(rows))
    count = min(len(rows), training + queries)
    generator = np.random.default_rng(_SEED)
    # One of each of `count` equal runs: spread over the whole split, and in order, as they are read from disk.
    bounds = np.linspace(0, len(rows), count + 1).astype(np.int64)
    drawn = rows[generator.integers(bounds[:-1], bounds[1:])]
    asked = np.zeros(count, dtype=bool)
    asked[generator.choice(count, queries, replace=False)] = True
    return Sample(training=drawn[~asked], queries=drawn[asked])


def build_index(
    kind: str,
    features: Features,
    rows: NDArray[np.int64],
    sample: Sample,
    device: str,
    seen: Callable[[NDArray[np.float32], NDArray[np.int64]], object],
) -> tuple[Index, str]:
    """Return an index of `kind` over the features of the global `rows` (n,), which are its ids.

    `seen` is called with each block (b, dim) and its rows (b,) when it has been added; the device "cpu" keeps faiss off
    the GPUs. The second is where it was trained and filled: "cuda" or "cpu".

    Raises:
        RuntimeError: faiss cannot train or add.
    """
    on_cpu = new_index(kind, features.dim)
    with _threads(kind):
        index = _to_gpu(on_cpu, kind, len(rows), device) if kind != EXACT else on_cpu
        if not index.is_trained:
            index.train(_gathered(features, sample.training))
        numbered: Any = faiss.IndexIDMap(index)
        for block in blocks(rows, features.dim):
            vectors = features.gather(block).astype(np.float32)
            numbered.add_with_ids(vectors, block)
            seen(vectors, block)
        if index is not on_cpu:
            on_cpu = faiss.index_gpu_to_cpu(index)
            numbered.index = on_cpu
            # What faiss's wrapper keeps alive for it: from now on the copy, no longer the one on the GPU.
            numbered.referenced_objects = [on_cpu]
    return Index(numbered), "cpu" if index is on_cpu else "cuda"


def blocks(rows: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """Cut `rows` (n,) into runs whose features take at most 64 MiB as float32."""
    size = max(_BLOCK_BYTES // (4 * dim), 1)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _gathered(features: Features, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Gather as float32, without a float16 copy of the whole beside it."""
    gathered = np.empty((len(rows), features.dim), dtype=np.float32)
    start = 0
    for block in blocks(rows, features.dim):
        gathered[start : start + len(block)] = features.gather(block)
        start += len(block)
    return gathered


@contextmanager
def _threads(kind: str) -> Iterator[None]:
    """Build graphs in one thread: several would link the same rows otherwise each time."""
    before = faiss.omp_get_max_threads()
    if "HNSW" in kind or "NSG" in kind:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _to_gpu(index: Any, kind: str, rows: int, device: str) -> Any:
    """Return a copy of `index` on the first GPU that `device` allows; else `index` itself, and say what hinders.

    That is a faiss without GPUs, a kind that exists on the CPU alone, or lists that would fill more than half of the
    GPU's free memory (they grow by doubling).
    """
    import torch  # here, since nothing else of indices needs it

    if device.startswith("cpu") or not torch.cuda.is_available():
        return index
    number = int(device.split(",")[0].partition(":")[2] or 0)
    hindrance = f"faiss {faiss.__version__} sees no GPU {number} (faiss-gpu belongs in the place of faiss-cpu)"
    try:
        if faiss.get_num_gpus() > number:
            needed, free = rows * (index.sa_code_size() + 8), torch.cuda.mem_get_info(number)[0]
            if needed <= free // 2:
                return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
            hindrance = (
                f"{needed / 2**30:.1f} GiB of lists need twice that on the GPU, where {free / 2**30:.1f} are free"
            )
    except RuntimeError as error:
        hindrance = faiss_reason(error)
    console.print(f"The index {kind} is built on the CPU: {hindrance}.", style="yellow")
    return index
