"""The strongest suspected false negatives of the training set: what soft labels are meant to tolerate.

The rule is that of `cusa-store missing`, which lists them all; here only a stretch of consecutive samples of a large
training set is searched, against all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stores import Store
from stores.candidates import Evidence
from stores.errors import CusaError
from stores.layout import teacher_slug
from stores.missing import missing_matches
from stores.parameters import Teachers
from stores.thumbnails import thumbnail
from train.report.page.relevance import PairRelevance
from train.report.page.sample import SEED

SEARCHED: Final = 2048
SHOWN: Final = 6
NEIGHBOURS: Final = 20
THUMBNAIL: Final = 240


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A caption of one sample that another sample's picture may show as well."""

    caption: str
    nearest: str
    """The other sample's caption that is closest to it."""
    own: str
    """The picture of the caption's own sample, a data URI; empty where it cannot be decoded."""
    other: str
    text_similarity: float
    image_similarity: float
    verdict: str
    """own, true or other, as the store's relevance has it."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """What was found, or why nothing was."""

    searched: int
    total: int
    pairs: list[Suspect]
    known: bool
    message: str = ""


def suspects(store: Store, teachers: Teachers) -> Suspects:
    """Search the split "train" of a store with the features of two teachers."""
    samples = store.rows("train", "sample")
    size = min(SEARCHED, len(samples))
    start = int(np.random.default_rng(SEED).integers(len(samples) - size + 1))
    none = Suspects(searched=size, total=len(samples), pairs=[], known=False)
    if len(samples) < 2:
        return none
    try:
        evidence = Evidence(store, teacher_slug(teachers.image, "image"), teacher_slug(teachers.text, "text"))
        run = samples[start : start + size]
        listed = missing_matches(store, evidence, "train", run, count=SHOWN, width=NEIGHBOURS).to_pylist()
    except CusaError as error:
        # A missing index should not cost a training its page.
        return Suspects(searched=size, total=len(samples), pairs=[], known=False, message=error.message)
    truth = PairRelevance(store, (row["caption_row"] for row in listed), ())
    pairs = [_suspect(store, row, truth) for row in listed]
    return Suspects(searched=size, total=len(samples), pairs=pairs, known=truth.known)


def _suspect(store: Store, row: dict[str, Any], truth: PairRelevance) -> Suspect:
    return Suspect(
        caption=row["caption"],
        nearest=row["nearest_caption"],
        own=thumbnail(store.images[row["sample_row"]], THUMBNAIL),
        other=thumbnail(store.images[row["image_row"]], THUMBNAIL),
        text_similarity=row["text_similarity"],
        image_similarity=row["image_similarity"],
        verdict=truth.kind(row["caption_row"], row["image_row"]),
    )
