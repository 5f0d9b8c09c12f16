"""What is known of a training's pairs: which were made wrong on purpose, and how likely each is right by a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stores import Store
from stores.clean import ADVICE, read_clean
from stores.errors import ParameterError
from stores.parameters import Train, TrainParameters
from train.data.numbers import Numbers
from train.data.pairing import Pairing
from train.losses.terms import TrainingPairs


def training_pairs(stores: Sequence[Store], captions: Numbers, settings: Train) -> TrainingPairs:
    """Return what is known of the pairs of all stores; a clean column is of the first one alone.

    Raises:
        ParameterError: pairs are to be weighed or left out, and no clean column is named.
        StoreError: a table is damaged, or the clean column is of other data.
    """
    wrong = [flags for store in stores if (flags := Pairing(store, "train").wrong()) is not None]
    clean = None
    if settings.clean is None and (settings.clean_weight or settings.clean_at_least):
        what = "weigh" if settings.clean_weight else "leave pairs out"
        raise ParameterError(where="train.clean", found=None, expected=f"a clean column to {what} by", advice=ADVICE)
    if settings.clean is not None:
        rows, probabilities = read_clean(Path(settings.clean), stores[0])
        inside = np.isin(rows, stores[0].rows("train", "caption"))
        clean = np.ones(len(captions))
        clean[rows[inside] - captions.first] = probabilities[inside]
    return TrainingPairs(
        captions.first, len(captions), np.concatenate(wrong) if len(wrong) == len(stores) else None, clean
    )


def check_weighable(parameters: TrainParameters) -> None:
    """Raise a `ParameterError` where nothing reads a clean column, or a loss cannot weigh pairs by it."""
    read = parameters.train.clean_weight or parameters.train.clean_at_least or parameters.loss.recipe == "l2rm"
    if parameters.train.clean is not None and not read:
        expected = "null, or one of train.clean_at_least, train.clean_weight and loss.recipe: l2rm, which read it"
        raise ParameterError(where="train.clean", found=parameters.train.clean, expected=expected)
    if parameters.train.clean_weight and (parameters.loss.original == "pcmr" or parameters.loss.recipe == "l2rm"):
        advice = "L2RM splits by train.clean as it is; with PCMR leave doubtful pairs out, by train.clean_at_least."
        expected = "false with loss.original: pcmr or loss.recipe: l2rm, which do not weigh pairs"
        raise ParameterError(where="train.clean_weight", found=True, expected=expected, advice=advice)


def too_doubtful(store: Store, settings: Train) -> NDArray[np.int64]:
    """Return the rows of the captions, sorted, that the clean column of a training keeps out of it."""
    if settings.clean is None or not settings.clean_at_least:
        return np.empty(0, dtype=np.int64)
    rows, probabilities = read_clean(Path(settings.clean), store)
    return rows[probabilities < settings.clean_at_least]
