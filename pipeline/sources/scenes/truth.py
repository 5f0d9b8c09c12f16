"""The truth about scenes and captions, evaluated from what they are and never from the words.

- A caption is *relevant* to a picture when its descriptions can be given to different objects of the scene so that
  each one fits.
- Two captions are *similar* by how much the best pairing of their descriptions agrees: for each pair the attributes
  with equal values over the attributes that either one fixes, summed, over the larger number of descriptions.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.scenes.world import OPEN, Description, Meaning


def satisfies(meaning: Meaning, objects: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Tell for each of (scenes, MAX_OBJECTS, 4) `objects` whether the scene satisfies `meaning`: (scenes,) bool."""
    wanted = np.array(meaning, dtype=np.int8)[:, None, None, :]
    present = objects[None, :, :, 0] != OPEN
    fits = ((wanted == OPEN) | (wanted == objects[None])).all(axis=-1) & present
    satisfied = np.zeros(len(objects), dtype=bool)
    for chosen in permutations(range(objects.shape[1]), len(meaning)):
        satisfied |= np.logical_and.reduce([fits[number, :, slot] for number, slot in enumerate(chosen)])
    return satisfied


def relevance(meanings: list[Meaning], objects: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return every relevant (caption, scene) pair as (pairs, 2) positions, sorted."""
    known: dict[Meaning, NDArray[np.int64]] = {}
    pairs = []
    for caption, meaning in enumerate(meanings):
        if meaning not in known:
            known[meaning] = np.flatnonzero(satisfies(meaning, objects))
        scenes = known[meaning]
        pairs.append(np.stack([np.full_like(scenes, caption), scenes], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def similarity(first: Meaning, second: Meaning) -> float:
    """Return how alike two meanings are, in [0, 1]; 1 for equal ones."""
    shorter, longer = sorted((first, second), key=len)
    best = max(
        sum(_agreement(one, other) for one, other in zip(shorter, chosen, strict=True))
        for chosen in permutations(longer, len(shorter))
    )
    return best / len(longer)


@lru_cache(maxsize=1 << 16)
def _agreement(one: Description, other: Description) -> float:
    fixed = [(a, b) for a, b in zip(one, other, strict=True) if a != OPEN or b != OPEN]
    return sum(a == b for a, b in fixed) / len(fixed)


def similarity_pairs(meanings: list[Meaning], count: int, seed: tuple[int, ...]) -> NDArray[np.float64]:
    """Return about `count` graded caption pairs (first, second, similarity), spread evenly over the grades.

    Captions drawn blindly would nearly all be unlike; sixteen times as many are drawn and thinned by grade.
    """
    random = np.random.default_rng(seed)
    drawn = np.unique(np.sort(random.integers(len(meanings), size=(16 * count, 2)), axis=1), axis=0)
    drawn = random.permutation(drawn[drawn[:, 0] != drawn[:, 1]])
    grades = np.array([similarity(meanings[a], meanings[b]) for a, b in drawn])
    bands = np.minimum((grades * 5).astype(int), 4)
    kept = np.concatenate([np.flatnonzero(bands == band)[: count // 5] for band in range(5)])
    kept.sort()
    return np.column_stack([drawn[kept], grades[kept]])
