"""cusa-store missing: the false negatives of a split, which its data set calls unmatched though they belong together.

1. Random pairs of a caption and another sample tell how text and image similarities are spread when nothing is meant.
2. Both indices give the candidates, block by block; each is a pair of samples with its two nearest captions.
3. score = z(text similarity) + ½ · z(image similarity), z in standard deviations above the random pairs' mean. The half
   was the best of several weights and rules on two data sets whose truth is known; docs/inspection.md has the figures.
4. The best pairs are kept, one for each two samples. Of its two captions the shorter is listed with the other's image:
   the less a text claims, the likelier it is true of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from rich.table import Table

from pipeline.inspection.candidates import BLOCK, Candidates, Evidence, Pairs, Rows, Values
from pipeline.inspection.columns import Column
from pipeline.inspection.missing_files import LISTED, claim_folder, write_list, write_page
from pipeline.inspection.output import cell
from pipeline.inspection.truth import Truth, read_truth
from stores import Store, StoreError
from stores.console import progress_bar

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

    def score(self, pairs: Pairs) -> Values:
        """Return the score of each pair."""
        return self.text.z(pairs.text) + IMAGE_WEIGHT * self.image.z(pairs.image)


def missing(path: Path, *, split: str, count: int, width: int, shown: int, out: Path | None) -> Table:
    """Write the list and the page of the best `count` pairs, and return a summary.

    Args:
        path: the store, which is not changed.
        split: where to search.
        count: how many pairs are listed.
        width: how many neighbours of each row are candidates.
        shown: how many pairs the page shows.
        out: the folder for both; without it, <store>-missing-<split> beside the store.

    Raises:
        StoreError: there is no such store or split, or the folder is another's.
    """
    store = Store.open(path)
    samples = store.rows(split, "image")
    folder = claim_folder(store.root, out or _beside(store.root, split))
    if len(samples) < 2:
        raise StoreError(
            f"The split {split} of {path} has one sample; a missing match needs two. Name another --split."
        )
    evidence = Evidence(store)
    calibration = _calibrate(evidence, samples)
    found = _best(store, evidence, calibration, split=split, count=count, width=width)
    listed = _listed(store, found, calibration)
    truth = read_truth(store, split, listed)
    write_list(folder, listed, truth)
    pairs_shown = write_page(folder, store, split, listed, shown)
    return _summary(folder, split, evidence, listed, truth, pairs_shown)


def _beside(root: Path, split: str) -> Path:
    """Return a folder beside the store that no other store there has; a store may be named as "." too."""
    place = root.resolve()
    return place.with_name(f"{place.name}-missing-{split}")


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


def _best(store: Store, evidence: Evidence, calibration: Calibration, *, split: str, count: int, width: int) -> Pairs:
    """Return the `count` pairs of samples with the highest scores, best first."""
    samples = store.rows(split, "image")
    candidates = Candidates(store, evidence, split, width)
    best = Pairs.empty()
    with progress_bar() as progress:
        task = progress.add_task(f"pairs of {split}", total=len(samples), note="")
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            best = _merged(best, evidence.pairs(*candidates.of(block)), calibration, count)
            progress.advance(task, len(block))
    return best


def _merged(best: Pairs, new: Pairs, calibration: Calibration, count: int) -> Pairs:
    """Return the best `count` of both, best first; a pair of samples found from either side is one."""
    both = best + new
    _, once = np.unique(np.stack([both.low, both.high], axis=1), axis=0, return_index=True)
    both = both[once]
    return both[np.lexsort((both.high, both.low, -calibration.score(both)))[:count]]


def _listed(store: Store, found: Pairs, calibration: Calibration) -> pa.Table:
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


def _summary(folder: Path, split: str, evidence: Evidence, listed: pa.Table, truth: Truth | None, shown: int) -> Table:
    table = Table(title=f"missing matches of {split}", show_header=False, title_justify="left")
    table.add_row("teachers", f"{evidence.image_slug} for images, {evidence.text_slug} for texts")
    table.add_row("pairs", f"{len(listed):,}, the best of each two samples; {folder / 'missing.parquet'}")
    table.add_row("page", f"the first {shown:,}; {folder / 'missing.html'}")
    for name, what in (("identical_caption", "the same caption"), ("identical_image", "the same image")):
        table.add_row(f"of them with {what}", f"{int(np.sum(listed[name].to_numpy())):,}")
    if truth is not None:
        for what, value in truth.precision(listed).items():
            table.add_row(what, cell(value))
    return table
