"""Missing matches: pairs of samples that share a caption by the teachers, although the data set pairs them not.

1. Random pairs of a caption and another sample tell how text and image similarities are spread when nothing is meant.
2. Both indices give the candidates, block by block; each is a pair of samples with its two nearest captions.
3. score = z(text similarity) + ½ · z(image similarity), z in standard deviations above the random pairs' mean. The half
   was the best of several weights and rules on two data sets whose truth is known; docs/inspection.md has the figures.
4. The best pairs are kept, one for each two samples. Of its two captions the shorter is listed with the other's image:
   the less a text claims, the likelier it is true of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from stores.candidates import BLOCK, CandidatePairs, Candidates, Evidence, Rows, Values
from stores.columns import Column
from stores.console import progress_bar
from stores.errors import StoreError
from stores.store import Store

LISTED: Final = pa.schema(
    [
        ("caption_row", pa.int64()),
        ("caption", pa.large_string()),
        ("sample_row", pa.int64()),
        ("sample_source_id", pa.string()),
        ("image_row", pa.int64()),
        ("image_source_id", pa.string()),
        ("nearest_caption_row", pa.int64()),
        ("nearest_caption", pa.large_string()),
        ("text_similarity", pa.float32()),
        ("image_similarity", pa.float32()),
        ("text_percentile", pa.float32()),
        ("image_percentile", pa.float32()),
        ("score", pa.float32()),
        ("identical_caption", pa.bool_()),
        ("identical_image", pa.bool_()),
    ]
)
"""One row a pair: a caption of `sample_row`, and `image_row`, whose image it may describe as well."""

IMAGE_WEIGHT: Final = 0.5
RANDOM_PAIRS: Final = 20_000


@dataclass(frozen=True)
class Spread:
    """How one modality's similarity is spread over random pairs."""

    random: Values
    """Sorted."""

    @classmethod
    def of(cls, similarity: Values) -> Spread:
        """Return the spread of the similarities (n,), of which NaN are left out."""
        return cls(np.sort(similarity[np.isfinite(similarity)]))

    def z(self, similarity: Values) -> Values:
        """Return how many standard deviations each lies above the mean."""
        z: Values = (similarity - self.random.mean()) / np.float32(max(float(self.random.std()), 1e-6))
        return z

    def percentile(self, similarity: Values) -> Values:
        """Return the percentage of random pairs that each is above."""
        share = np.searchsorted(self.random, similarity) / len(self.random)
        return (100 * share).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """What a score is made of."""

    text: Spread
    image: Spread

    def score(self, pairs: CandidatePairs) -> Values:
        """Return the score of each pair."""
        return self.text.z(pairs.text) + IMAGE_WEIGHT * self.image.z(pairs.image)


def missing_matches(
    store: Store, evidence: Evidence, split: str, searched: Rows | None = None, *, count: int, width: int
) -> pa.Table:
    """Return the `count` pairs with the highest scores, best first; the schema is `LISTED`.

    Args:
        store: the store, whose indices of both teachers are searched.
        evidence: what its teachers say.
        split: where to search; it has two samples or more.
        searched: consecutive rows of samples, of which every pair has one at least; without them, the whole split.
        count: how many pairs are listed.
        width: how many neighbours of each row are candidates.

    Raises:
        StoreError: an index is absent or damaged, or a teacher failed on all rows that were looked at.
    """
    samples = store.rows(split, "sample")
    calibration = _calibrate(evidence, samples)
    found = _best(
        store, evidence, calibration, split, samples if searched is None else searched, count=count, width=width
    )
    return _listed(store, found, calibration)


def _calibrate(evidence: Evidence, samples: Rows) -> Calibration:
    """Draw random captions and other samples, always the same ones."""
    random = np.random.default_rng(0)
    one = random.choice(samples, RANDOM_PAIRS)
    other = samples[(one - samples[0] + random.integers(1, len(samples), RANDOM_PAIRS)) % len(samples)]
    captions = evidence.captions(one)
    chosen = captions.first + random.integers(captions.count)
    single = type(captions)(chosen, np.ones(RANDOM_PAIRS, np.int64))
    text, *_ = evidence.nearest_captions(single, evidence.captions(other))
    calibration = Calibration(Spread.of(text), Spread.of(evidence.image_similarity(one, other)))
    for slug, spread in ((evidence.text_slug, calibration.text), (evidence.image_slug, calibration.image)):
        if not len(spread.random):
            raise StoreError(f"{slug} failed on all rows that were looked at; cusa-store verify says more.")
    return calibration


def _best(
    store: Store, evidence: Evidence, calibration: Calibration, split: str, searched: Rows, *, count: int, width: int
) -> CandidatePairs:
    """Return the `count` pairs of samples with the highest scores, best first."""
    candidates = Candidates(store, evidence, split, width)
    best = CandidatePairs.empty()
    with progress_bar() as progress:
        task = progress.add_task(f"pairs of {split}", total=len(searched), note="")
        for start in range(0, len(searched), BLOCK):
            block = searched[start : start + BLOCK]
            best = _merged(best, evidence.pairs(*candidates.of(block)), calibration, count)
            progress.advance(task, len(block))
    return best


def _merged(best: CandidatePairs, new: CandidatePairs, calibration: Calibration, count: int) -> CandidatePairs:
    """Return the best `count` of both, best first; a pair of samples found from either side is one."""
    both = best + new
    _, once = np.unique(np.stack([both.low, both.high], axis=1), axis=0, return_index=True)
    both = both[once]
    return both[np.lexsort((both.high, both.low, -calibration.score(both)))[:count]]


def _listed(store: Store, found: CandidatePairs, calibration: Calibration) -> pa.Table:
    """Return the pairs as rows of the list, each with the shorter caption and the other sample's image."""
    texts, ids, digests = (
        Column(store.captions["text"]),
        Column(store.samples["source_id"]),
        Column(store.samples["image_sha256"]),
    )
    low, high = texts.values(found.low_caption), texts.values(found.high_caption)
    of_low = np.array([len(ours) <= len(theirs) for ours, theirs in zip(low, high, strict=True)], dtype=bool)
    own, suggested = np.where(of_low, found.low, found.high), np.where(of_low, found.high, found.low)
    caption_rows = np.where(of_low, found.low_caption, found.high_caption)
    nearest_rows = np.where(of_low, found.high_caption, found.low_caption)
    captions, nearest = texts.values(caption_rows), texts.values(nearest_rows)
    return pa.table(
        {
            "caption_row": caption_rows,
            "caption": captions,
            "sample_row": own,
            "sample_source_id": ids.values(own),
            "image_row": suggested,
            "image_source_id": ids.values(suggested),
            "nearest_caption_row": nearest_rows,
            "nearest_caption": nearest,
            "text_similarity": found.text,
            "image_similarity": found.image,
            "text_percentile": calibration.text.percentile(found.text),
            "image_percentile": calibration.image.percentile(found.image),
            "score": calibration.score(found),
            "identical_caption": [ours == theirs for ours, theirs in zip(captions, nearest, strict=True)],
            "identical_image": [a == b for a, b in zip(digests.values(own), digests.values(suggested), strict=True)],
        },
        schema=LISTED,
    )
