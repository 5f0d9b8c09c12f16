"""The best one-to-one assignment between two sets of K members: by all permutations up to K = 5, beyond by scipy.

Up to 5 the sums of all K! permutations are one matrix product, on the device and without a loop over pairs.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

PERMUTED: Final = 5
"""The largest sets whose permutations are all tried."""


def best_assignment(similarity: Tensor) -> Tensor:
    """Return which column each row takes in the assignment of the largest sum: (p, K, K) to (p, K) int64.

    It is a constant: no gradient flows through the choice. Where sums are equal, the first permutation is taken.
    """
    similarity, count = similarity.detach(), similarity.shape[-1]
    if count > PERMUTED:
        solved = [linear_sum_assignment(one, maximize=True)[1] for one in similarity.cpu().numpy()]
        columns = np.array(solved, dtype=np.int64).reshape(-1, count)
        return torch.from_numpy(columns).to(similarity.device)
    ways, cells = _permutations(count)
    sums = similarity.flatten(1) @ cells.to(similarity)
    return ways.to(similarity.device)[sums.argmax(dim=1)]


@cache
def _permutations(count: int) -> tuple[Tensor, Tensor]:
    """Return the K! permutations, (K!, K) int64, and which cells of K × K each takes, (K · K, K!) of 0 and 1."""
    ways = torch.tensor(list(permutations(range(count))))
    cells = torch.zeros(len(ways), count, count).scatter_(2, ways[..., None], 1.0)
    return ways, cells.flatten(1).T.contiguous()
