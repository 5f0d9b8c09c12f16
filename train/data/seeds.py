"""Everything random in training follows from a few numbers, so that no generator's state is ever saved."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """Return a 32-bit seed, as torch and numpy take it, that is its own for every sequence of whole numbers.

    A training uses (seed,) for the model's start and (seed, epoch, step, process) for one step in one process.
    """
    # The count keeps (7,) and (7, 0) apart, which numpy pads alike.
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1)[0])
