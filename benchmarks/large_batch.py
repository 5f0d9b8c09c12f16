"""The objective tile by tile against the plain form, which holds its pairs × pairs matrices: time, memory, gradients.

Time and gradients are measured at a batch that the plain form can hold, memory at one far beyond it.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Result, in_turn
from models.encoded import Encoded
from models.scoring import Cosine
from stores.parameters import Loss
from train.losses import tiles
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective

DIM, LARGE = 512, 32_768
ROUNDS = 2
TIME_BOUND, MEMORY_BOUND, GRADIENT_BOUND = 1.6, 0.10, 1e-5
PLAIN_MATRICES = 12
"""Pairs × pairs matrices that the plain form holds when it computes the last of its six cross-entropies: similarities
between the modalities, among images and among texts (3), both soft labels (2), the gradients of the five before it (5),
its logits and its softmax (2)."""
CAP = {"cpu": 8192, "cuda": 32_768}
"""The plain form is measured at no larger batch, so that the benchmark ends within minutes."""


def benchmark() -> list[Result]:
    """Measure time and gradients beside the plain form, and peak memory in a process of its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        extra = pool.apply(_peak, (device, LARGE))
    return [_time(device), _memory(extra)]


def _time(device: str) -> Result:
    count = _largest(device)
    inputs = Pairs(device, count)
    ours, yardstick, ratio = in_turn(lambda: inputs.step(tiles.ELEMENTS), lambda: inputs.step(count**2), ROUNDS)
    pairs = zip(inputs.step(tiles.ELEMENTS), inputs.step(count**2), strict=True)
    difference = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    return Result(
        name=f"objective of {count:,} pairs × {DIM} in tiles, forward and backward on {device}, against the plain form "
        f"(value and gradients differ by at most {difference:.1e} of their norm; bound {GRADIENT_BOUND:.0e})",
        ours=ours,
        yardstick=yardstick,
        unit="s",
        ratio=ratio,
        bound=f"≤ {TIME_BOUND}",
        kept=ratio <= TIME_BOUND and difference <= GRADIENT_BOUND,
    )


def _memory(extra: int) -> Result:
    plain = PLAIN_MATRICES * LARGE**2 * torch.float32.itemsize
    return Result(
        name=f"extra memory of the objective of {LARGE:,} pairs × {DIM} in tiles at its peak, against the plain form's "
        f"{PLAIN_MATRICES} matrices of {LARGE:,} × {LARGE:,}, computed",
        ours=extra / 2**30,
        yardstick=plain / 2**30,
        unit="GiB",
        ratio=extra / plain,
        bound=f"≤ {MEMORY_BOUND:.2f}",
        kept=extra / plain <= MEMORY_BOUND,
    )


def _largest(device: str) -> int:
    """Return the largest batch, in thousands of 1,024, whose plain form takes at most 70 % of the free memory."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else kibibytes("/proc/meminfo", "MemAvailable:") * 1024
    fits = (0.7 * free / (PLAIN_MATRICES * torch.float32.itemsize)) ** 0.5
    return min(CAP[device], int(fits) // 1024 * 1024)


class Pairs:
    """Pairs in clusters, which teachers and student see alike but for noise; two captions an image."""

    def __init__(self, device: str | torch.device, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(count // 8, DIM, generator=generator)
        shared = centres[torch.randint(count // 8, (count,), generator=generator)]
        noisy = [shared + torch.randn(count, DIM, generator=generator) for _ in range(6)]
        self._embeddings = [tensor.to(device).requires_grad_() for tensor in noisy[:4]]
        self._objective = make_objective(Loss()).to(device)
        image, text, uni_image, uni_text = self._embeddings
        places = torch.arange(count, device=device)
        self._batch = Instances(
            {"image": Encoded(image, uni_image), "text": Encoded(text, uni_text)},
            places,
            places // 2,
            {modality: tensor.to(device) for modality, tensor in zip(("image", "text"), noisy[4:], strict=True)},
        )

    def step(self, elements: int) -> list[Tensor]:
        """Return the value and its gradients, computed in tiles of at most so many `elements`."""
        standard, tiles.ELEMENTS = tiles.ELEMENTS, elements  # type: ignore[misc]
        try:
            value, _ = compare(self._objective, self._batch, self._batch, Cosine())
        finally:
            tiles.ELEMENTS = standard  # type: ignore[misc]
        return [value.detach(), *torch.autograd.grad(value, [*self._embeddings, *self._objective.parameters()])]


def _peak(device: str, count: int) -> int:
    """Return the bytes that one step takes at its peak beyond its inputs."""
    inputs = Pairs(device, count)
    before = _held(device, "VmRSS:")
    inputs.step(tiles.ELEMENTS)
    return _held(device, "VmHWM:") - before


def _held(device: str, field: str) -> int:
    if device == "cuda":
        return torch.cuda.memory_allocated() if field == "VmRSS:" else torch.cuda.max_memory_allocated()
    return kibibytes("/proc/self/status", field) * 1024


def kibibytes(file: str, field: str) -> int:
    """Return a figure of the kernel, such as this process's memory."""
    return int(Path(file).read_text().partition(field)[2].split()[0])
