"""Rows with a rare modality come by twos, so that in a batch they meet another of their kind."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ENOUGH: Final = 8
"""A modality that is expected so often in a batch hardly ever comes once alone (λ e^−λ = 0.3 %)."""


def by_twos(present: NDArray[np.bool_], batch_size: int) -> NDArray[np.int64]:
    """Return an order of n shuffled rows in which those with a rare modality stand side by side.

    One item of a modality alone has no negatives of its kind in a batch: nothing can be learned of it. Where each such
    two stand is as random as where the first of them stood; a batch's end still parts some, which the loss counts.

    Args:
        present: (n, P) which rows have which of P modalities.
        batch_size: rows of a batch.
    """
    expected = present.mean(axis=0) * batch_size
    rare = present[:, (expected > 0) & (expected < ENOUGH)]
    places = np.arange(len(present))
    if not rare.shape[1]:
        return places
    kinds = np.where(rare.any(axis=1), rare.argmax(axis=1), -1)
    for kind in range(rare.shape[1]):
        rows = np.flatnonzero(kinds == kind)
        if len(rows) > 1:
            runs = np.minimum(np.arange(len(rows)) // 2, len(rows) // 2 - 1)  # of an odd number the last is of three
            places[rows] = rows[2 * runs]
    return np.argsort(places, kind="stable")
