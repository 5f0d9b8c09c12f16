"""Missing matches: pairs of samples that share a caption by the teachers, although the data set pairs them not.

1. Random pairs of a caption and another sample tell how text and image similarities are spread when nothing is meant.
2. Both indices give the candidates, block by block; each is a pair of samples with its two nearest captions.
3. score = z(text similarity) + ½ · z(image similarity), z in standard deviations above the random pairs' mean. The half
   was the best of several weights and rules on two data sets whose truth is known; docs/inspection.md has the figures.
4. The best pairs are kept, one for each two samples. Of its two captions the shorter is listed with the other's image:
   the less a text claims, the likelier it is true of both.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from stores.candidates import BLOCK, PAIR, Candidates, Evidence, Pairs, Rows, Values
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


class Calibration(NamedTuple):
    """The similarities of random pairs by either teacher, sorted, (n,) each; those of candidates are judged by them."""

    text: Values
    image: Values

    def score(self, pairs: Pairs) -> Values:
        """Return the score of each pair."""
        text, image = (
            (pairs[name] - random.mean()) / np.float32(max(float(random.std()), 1e-6))
            for name, random in self._asdict().items()
        )
        scores: Values = text + IMAGE_WEIGHT * image
        return scores


def missing_matches(
    store: Store, evidence: Evidence, split: str, searched: Rows | None = None, *, count: int, width: int
) -> pa.Table:
    """Return the `count` pairs of a split with the highest scores, best first; the schema is `LISTED`.

    The split has two samples or more. Every pair has one at least of the consecutive rows `searched`, without which the
    whole split is searched; of each row, the `width` nearest neighbours are candidates.

    Raises:
        StoreError: an index is absent or damaged, or a teacher failed on all rows that were looked at.
    """
    samples = store.rows(split, "sample")
    searched = samples if searched is None else searched
    calibration, candidates = _calibrate(evidence, samples), Candidates(store, evidence, split, width)
    best = np.empty(0, PAIR)
    with progress_bar() as progress:
        task = progress.add_task(f"pairs of {split}", total=len(searched), note="")
        for start in range(0, len(searched), BLOCK):
            block = searched[start : start + BLOCK]
            found = evidence.pairs(*candidates.of(block))
            best = _best(np.concatenate([best, found]), calibration, count)
            progress.advance(task, len(block))
    return _listed(store, best, calibration)


def _calibrate(evidence: Evidence, samples: Rows) -> Calibration:
    """Draw random captions and other samples, always the same ones."""
    random = np.random.default_rng(0)
    samples = samples[evidence.captions(samples).count > 0]
    if len(samples) < 2:
        raise StoreError("samples with captions", found=len(samples), expected="two or more")
    places = random.choice(len(samples), RANDOM_PAIRS)
    one, other = samples[places], samples[(places + random.integers(1, len(samples), RANDOM_PAIRS)) % len(samples)]
    captions = evidence.captions(one)
    chosen = captions.first + random.integers(captions.count)
    single = type(captions)(chosen, np.ones(RANDOM_PAIRS, np.int64))
    text, *_ = evidence.nearest_captions(single, evidence.captions(other))
    spreads = (np.sort(values[np.isfinite(values)]) for values in (text, evidence.image_similarity(one, other)))
    calibration = Calibration(*spreads)
    for slug, spread in zip((evidence.text_slug, evidence.image_slug), calibration, strict=True):
        if not len(spread):
            raise StoreError(f"{slug} failed on all rows that were looked at; cusa-store verify says more.")
    return calibration


def _best(pairs: Pairs, calibration: Calibration, count: int) -> Pairs:
    """Return the `count` pairs with the highest scores, best first; a pair of samples found from either side is one."""
    _, once = np.unique(np.stack([pairs["low"], pairs["high"]], axis=1), axis=0, return_index=True)
    pairs = pairs[once]
    return pairs[np.lexsort((pairs["high"], pairs["low"], -calibration.score(pairs)))[:count]]


def _listed(store: Store, found: Pairs, calibration: Calibration) -> pa.Table:
    """Return the pairs as rows of the list, each with the shorter caption and the other sample's image."""
    texts, ids, digests = (
        Column(store.captions["text"]),
        Column(store.samples["source_id"]),
        Column(store.samples["image_sha256"]),
    )
    low, high = texts.values(found["low_caption"]), texts.values(found["high_caption"])
    of_low = np.array([len(ours) <= len(theirs) for ours, theirs in zip(low, high, strict=True)], dtype=bool)
    own, suggested = np.where(of_low, found["low"], found["high"]), np.where(of_low, found["high"], found["low"])
    caption_rows = np.where(of_low, found["low_caption"], found["high_caption"])
    nearest_rows = np.where(of_low, found["high_caption"], found["low_caption"])
    captions, nearest = texts.values(caption_rows), texts.values(nearest_rows)
    spreads = calibration._asdict().items()
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
            "text_similarity": found["text"],
            "image_similarity": found["image"],
            **{
                f"{name}_percentile": 100 * np.searchsorted(random, found[name]) / len(random)
                for name, random in spreads
            },
            "score": calibration.score(found),
            "identical_caption": [ours == theirs for ours, theirs in zip(captions, nearest, strict=True)],
            "identical_image": [
                a is not None and a == b for a, b in zip(digests.values(own), digests.values(suggested), strict=True)
            ],
        },
        schema=LISTED,
    )
