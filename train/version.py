"""What tells a run of this code from one of code that computes otherwise."""

from __future__ import annotations

from typing import Final

from models.checkpoint import CHECKPOINT_FORMAT
from stores.images import DECODING

TRAINING: Final = 5
"""Raised with every change to what a training computes from its parameters and data: the order of pairs, augmentation,
the embedded student, heads, losses, the optimiser, the choice of the best epoch, what is measured. A comment, a live
view or a page changes no result, and leaves it as it is."""

VERSIONS: Final = {"training": TRAINING, "decoding": DECODING, "checkpoint": CHECKPOINT_FORMAT}
"""As run.json has them; a run with others is another run."""
