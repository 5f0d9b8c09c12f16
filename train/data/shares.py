"""Which store each place of the stream belongs to, where several are mixed by weight.

Places are dealt by the quota method (Balinski and Young, The quota method of apportionment, 1975): whichever prefix is
looked at, each store's number of places is its share of it rounded down or up. Shares are whole ten-thousandths, so
the dealing repeats itself after 10,000 places: the count before any place follows from one period.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores import TrainingError

PERIOD: Final = 10_000


class MixtureShares:
    """Deals the places of an epoch to stores; the first store gets what the others leave."""

    def __init__(self, others: Sequence[float]) -> None:
        """Round the shares of all stores but the first; each must be 1 / 10,000 at least, and their sum below 1.

        Raises:
            TrainingError: they are not so.
        """
        parts = [round(share * PERIOD) for share in others]
        self._parts = np.array([PERIOD - sum(parts), *parts])
        if self._parts.min() < 1:
            raise TrainingError(
                f"The shares of train.mix_in are {', '.join(f'{share:g}' for share in others)}. Each must be "
                f"{1 / PERIOD:.4f} at least, and their sum below 1: the main store gets what they leave."
            )
        self._pattern = _dealt(self._parts.tolist())
        dealt = self._pattern[:, None] == np.arange(len(self._parts))
        self._before = np.concatenate([np.zeros((1, len(self._parts)), np.int64), np.cumsum(dealt, axis=0)])

    def count(self, places: int) -> NDArray[np.int64]:
        """Return how many of an epoch's first `places` places each store has: (stores,)."""
        periods, rest = divmod(places, PERIOD)
        counts: NDArray[np.int64] = periods * self._parts + self._before[rest]
        return counts

    def owners(self, first: int, number: int) -> NDArray[np.int64]:
        """Return the store of each of `number` places from `first`: (number,)."""
        return self._pattern[(first + np.arange(number)) % PERIOD]


def _dealt(parts: list[int]) -> NDArray[np.int64]:
    """Deal one period: each place to the store that needs it soonest, among those that would not get too many."""
    pattern, counts = np.empty(PERIOD, dtype=np.int64), [0] * len(parts)
    for place in range(PERIOD):
        below_quota = [k for k, part in enumerate(parts) if counts[k] * PERIOD < (place + 1) * part]
        chosen = min(below_quota, key=lambda k: (counts[k] + 1) / parts[k])
        counts[chosen] += 1
        pattern[place] = chosen
    return pattern
