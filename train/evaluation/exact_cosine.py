"""Cosine similarity without rounding: the same number in whichever block, order and direction it is computed.

Rows are normalised in float64 and rounded to whole multiples of 2⁻²⁴, which is closer to the truth than a float32
matrix product is. Products of such numbers are multiples of 2⁻⁴⁸, and any partial sum of a row's products stays below
2, so float64 holds every step of a dot product exactly. Hence identical embeddings tie exactly, wherever they stand.
(Ordinary matrix products give a pair another last bit by its place in the block, and so break ties by chance.)

Shapes: Q queries, C candidates, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from stores.errors import CusaError
from stores.hardware import WITHOUT_FLOAT64

GRID: Final = 2.0**24


@torch.no_grad()
def unit_rows(embeddings: Tensor) -> Tensor:
    """Return the rows of (N, D) embeddings at unit length, as multiples of 2⁻²⁴, in float32; zeros stay zeros.

    Raises:
        CusaError: there is no row, or one is not finite.
    """
    if embeddings.ndim < 2 or 0 in embeddings.shape:
        raise CusaError(f"The embeddings are {tuple(embeddings.shape)}; expected at least one row and one column.")
    units = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    step = _part(embeddings.device)
    for part, place in zip(torch.split(embeddings, step), torch.split(units, step), strict=True):
        rows = part.double()
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if not torch.isfinite(lengths).all():
            raise CusaError("The embeddings hold values that are not finite; the model is broken.")
        rows /= lengths.clamp_min_(torch.finfo(torch.float64).tiny)
        place.copy_(rows.mul_(GRID).round_().div_(GRID))
    return units


def cosine(queries: Tensor, candidates: Tensor) -> Tensor:
    """Return the exact similarities of unit rows, the candidates in float64 already."""
    return queries.double() @ candidates.T


def pair_cosine(queries: Tensor, candidates: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the exact similarities of some pairs of unit rows: (pairs,) float64."""
    scores = torch.empty(len(row), dtype=torch.float64, device=queries.device)
    step = _part(queries.device)
    for start in range(0, len(row), step):
        products = queries[row[start : start + step]].double()
        products *= candidates[column[start : start + step]]
        scores[start : start + step] = products.sum(dim=1)
    return scores


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Let matrix products of float32 be of float32: no autocast, no TF32 or bfloat16 inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def exact_device(device: torch.device) -> torch.device:
    """Return where exact cosines of a device's embeddings are computed: float64 is what Apple's accelerator lacks."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def _part(device: torch.device) -> int:
    """Return how many embeddings are worked on at once; a processor's should stay in its cache."""
    return 2**16 if device.type == "cuda" else 512
