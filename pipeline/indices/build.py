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
from stores.index import Index

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
) -> Index:
    """Return an index of `kind` over the features of the global `rows` (n,), which are its ids.

    `seen` is called with each block (b, dim) and its rows (b,) when it has been added; the device "cpu" keeps faiss off
    the GPUs.

    Raises:
        RuntimeError: faiss cannot train or add.
    """
    on_cpu = new_index(kind, features.dim)
    with _threads(kind):
        index = _to_gpu(on_cpu, len(rows), device) if kind != EXACT else on_cpu
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
    return Index(numbered)


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


def _to_gpu(index: Any, rows: int, device: str) -> Any:
    """Return a copy of `index` on the first GPU that `device` allows, or `index` itself where that cannot be.

    It cannot where faiss was built without GPUs, where there is none, where the kind exists on the CPU alone, and
    where the lists would fill more than half of the GPU's free memory (they grow by doubling).
    """
    if device.startswith("cpu") or not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus():
        return index
    import torch  # here, since nothing else of indices needs it

    number = int(device.split(",")[0].partition(":")[2] or 0)
    free, _ = torch.cuda.mem_get_info(number)
    try:
        if rows * (index.sa_code_size() + 8) > free // 2:
            return index
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    except RuntimeError:
        return index
