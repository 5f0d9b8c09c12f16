"""Everything random in training follows from a few numbers, so that no generator's state is ever saved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*numbers: int) -> int:
    """Return a 32-bit seed, as torch and numpy take it, that is its own for every sequence of whole numbers.

    A training uses (seed,) for the model's start and (seed, epoch, step, process) for one step in one process.
    """
    # The count keeps (7,) and (7, 0) apart, which numpy pads alike.
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1)[0])


@contextmanager
def generators_restored() -> Iterator[None]:
    """Put the global generators of Python, numpy and torch (on the CPU) back as they were."""
    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(tensors)


def seed_for(seed: int, epoch: int, place: int) -> None:
    """Seed the global generators for the sample at a place of an epoch; devices' generators are left alone.

    A transform that draws from these three gives the same in the main process, in any worker and on any rank.
    """
    number = derived_seed(seed, epoch, place)
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
