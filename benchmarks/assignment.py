"""The best assignment of two sets' members, for every pair of a batch: all permutations against scipy's solver."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.measure import Result, in_turn
from models.encoded import Encoded
from models.scoring import Assignment, unit

IMAGES, TEXTS, MEMBERS, DIM = 64, 320, 4, 256
"""A batch of images with five captions each."""
BOUND: Final = 0.5
ROUNDS: Final = 9


def benchmark() -> Result:
    """Measure the scores of 20,480 pairs of sets of four, their cosines included on both sides."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        Encoded(torch.zeros(count, DIM), parts=torch.randn(count, MEMBERS, DIM, generator=generator))
        for count in (IMAGES, TEXTS)
    )
    scorer = Assignment()
    with torch.no_grad():
        difference = (scorer.matrix(images, texts) - _solved(images, texts)).abs().max().item()
        ours, yardstick, ratio = in_turn(lambda: scorer.matrix(images, texts), lambda: _solved(images, texts), ROUNDS)
    name = f"assignment of {IMAGES} × {TEXTS} sets of {MEMBERS}, against scipy pair by pair (apart by {difference:.0e})"
    kept = ratio <= BOUND and difference < 1e-5
    return Result(name=name, ours=ours, yardstick=yardstick, unit="s", ratio=ratio, bound=f"≤ {BOUND:g}", kept=kept)


def _solved(images: Encoded, texts: Encoded) -> Tensor:
    """Score pair by pair: (64, 320)."""
    one, other = (unit(torch.as_tensor(side.parts)).flatten(0, 1) for side in (images, texts))
    cosines = (one @ other.T).view(IMAGES, MEMBERS, TEXTS, MEMBERS).transpose(1, 2).numpy()
    scores = np.empty((IMAGES, TEXTS), np.float32)
    for row in range(IMAGES):
        for column in range(TEXTS):
            pair = cosines[row, column]
            scores[row, column] = np.expm1(pair[linear_sum_assignment(pair, maximize=True)]).mean()
    return torch.from_numpy(scores)
