"""The strongest suspected false negatives of the training set: what soft labels are meant to tolerate.

The rule is that of `cusa-store missing`, which lists them all; here only a stretch of consecutive samples of a large
training set is searched, against all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from stores import CusaError, Store
from stores.candidates import Evidence
from stores.layout import teacher_slug
from stores.missing import missing_matches
from stores.parameters import Teachers
from stores.thumbnails import thumbnail
from train.report.page.sample import SEED, PairRelevance

SEARCHED: Final = 2048
SHOWN: Final = 6
NEIGHBOURS: Final = 20
THUMBNAIL: Final = 240


class FalseNegatives(NamedTuple):
    """What was found, or why nothing was."""

    searched: int
    total: int
    pairs: Sequence[dict[str, Any]] = ()
    """As `stores.missing.LISTED` has them, with both pictures (data URIs, empty where they cannot be decoded) and
    whether the pair is own, true or other by the store's relevance."""
    known: bool = False
    message: str = ""


def false_negatives(store: Store, teachers: Teachers) -> FalseNegatives:
    """Search the split "train" of a store with the features of two teachers."""
    samples = store.rows("train", "sample")
    size = min(SEARCHED, len(samples))
    start = int(np.random.default_rng(SEED).integers(len(samples) - size + 1))
    if len(samples) < 2:
        return FalseNegatives(size, len(samples))
    try:
        evidence = Evidence(store, teacher_slug(teachers.image, "image"), teacher_slug(teachers.text, "text"))
        run = samples[start : start + size]
        listed = missing_matches(store, evidence, "train", run, count=SHOWN, width=NEIGHBOURS).to_pylist()
    except CusaError as error:
        # A missing index should not cost a training its page.
        return FalseNegatives(size, len(samples), message=error.message)
    truth = PairRelevance(store, [row["caption_row"] for row in listed], [])
    for row in listed:
        row["own"], row["other"] = (
            thumbnail(store.images[row[name]], THUMBNAIL) for name in ("sample_row", "image_row")
        )
        row["verdict"] = truth.kind(row["caption_row"], row["image_row"])
    return FalseNegatives(size, len(samples), listed, truth.known)
