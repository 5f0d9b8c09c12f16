"""Augmentation that is the same wherever it is done: each sample's randomness follows from its place in the epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from train.data.seeds import derived_seed


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
