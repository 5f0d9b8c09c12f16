"""Evaluation on a split: cross-modal tasks by the cross-modal heads, uni-modal ones by the uni-modal heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.aligned import AlignedModel
from models.scoring import Scorer
from stores import Store
from stores.errors import CusaError
from stores.parameters import Evaluation
from train.evaluation.embed import SplitEncoded
from train.evaluation.every_pair import EveryPair, both_ways, by_relevance
from train.evaluation.exact_cosine import exact_device
from train.evaluation.metrics import (
    class_recall,
    median_rank,
    paired_cosine,
    recalls,
    spearman,
)
from train.evaluation.ranked_modalities import RankedModality, SplitModalities, relevance
from train.evaluation.rankings import Ranks, checked_relevance, nearest_other
from train.evaluation.set_figures import set_figures
from train.evaluation.similarities import Similarities, similarities

DIRECTIONS: Final = ("image_to_text", "text_to_image")
LEVELS: Final = ("sample", "caption")
Found = TypeVar("Found", bound=Similarities)


def compare_split(
    model: AlignedModel,
    encoded: SplitEncoded,
    folder: Path,
    pause: Callable[[], None] = lambda: None,
    scorer: Scorer | None = None,
) -> Similarities:
    """Compare every sample's item with every caption's, for all that is measured and shown across modalities.

    `folder` is where an interrupted scoring goes on, `pause` is called now and then and may raise. `scorer` is what
    they are compared by, where that is not the student's own.

    Raises:
        CusaError: the scores are not finite, or of another shape.
    """
    first, second = crossed(model)
    return similarities(scorer or model.scorer, encoded[first], encoded[second], model.device, folder, pause)


def crossed(model: AlignedModel) -> tuple[str, str]:
    """Return which two modalities the model is chosen by and the pages show: the first of samples and of captions.

    Without both, in this order, they are the first two of all.

    Raises:
        CusaError: the student has fewer than two.
    """
    inputs = model.interface.inputs
    names = [next((name for name, given in inputs.items() if given.level == level), "") for level in LEVELS]
    if len(inputs) < 2:
        raise CusaError(f"The student's modalities are {', '.join(inputs)}. Retrieval is measured between two or more.")
    in_order = all(names) and list(inputs).index(names[0]) < list(inputs).index(names[1])
    first, second = names if in_order else list(inputs)[:2]
    return first, second


def shows_pairs(model: AlignedModel) -> bool:
    """Tell whether the two that are crossed are of samples and captions, which pages show side by side."""
    return tuple(model.interface.inputs[name].level for name in crossed(model)) == LEVELS


def retrieval(
    model: AlignedModel, encoded: SplitEncoded, found: Similarities, store: Store, split: str
) -> dict[str, Any]:
    """Return R@1, R@5, R@10 both ways, RSUM and the median ranks over a split; what is absent is left out."""
    return _figures(both_ways(*those_present(model, encoded, found, store, split)), directions(crossed(model)))


def those_present(
    model: AlignedModel, encoded: SplitEncoded, found: Found, store: Store, split: str
) -> tuple[Found, sparse.csr_array]:
    """Return the similarities of those items of a split that are there, (n, m), and which belong together."""
    first, second, found = _there(model, encoded, found, store, split)
    return found, relevance(first, second, "caption")


def _there(
    model: AlignedModel, encoded: SplitEncoded, found: Found, store: Store, split: str
) -> tuple[RankedModality, RankedModality, Found]:
    """Return the two modalities that are crossed, and of all their similarities those of items that are there."""
    modalities = SplitModalities(model, encoded, store, split)
    first, second = (modalities.ranked(name) for name in crossed(model))
    absent = (len(first), len(second)) != found.shape
    return first, second, found.part(first.places, second.places) if absent else found


def _sets(
    model: AlignedModel, encoded: SplitEncoded, found: Similarities, store: Store, split: str, folder: Path
) -> dict[str, Any] | None:
    first, second, found = _there(model, encoded, found, store, split)
    relevant = relevance(first, second, "caption")

    def ranked(scorer: Scorer) -> dict[str, Any]:
        other = similarities(scorer, first.encoded, second.encoded, model.device, folder)
        return _figures(both_ways(other, relevant), directions((first.name, second.name)))

    return set_figures(model, first, second, found, relevant, ranked)


def directions(names: tuple[str, str]) -> tuple[str, str]:
    """Return what both ways between two modalities are called, such as image_to_text."""
    return f"{names[0]}_to_{names[1]}", f"{names[1]}_to_{names[0]}"


class Evaluated(NamedTuple):
    """What could be measured on a split, and by name of a figure why it could not be."""

    figures: dict[str, Any]
    faults: dict[str, str]


def evaluate(
    model: AlignedModel,
    encoded: SplitEncoded,
    found: Callable[[], Similarities],
    store: Store,
    split: str,
    settings: Evaluation,
    folder: Path,
    reranked: Callable[[], Similarities] | None = None,
) -> Evaluated:
    """Measure everything that the store allows to measure on a split.

    R@K both ways, RSUM and median ranks; on the true relevance, where the source has it, mAP@R, R-Precision and R@1
    both ways; image R@1 by class and the Spearman correlation of caption similarity. Of a student of more than two
    modalities, or with enriched ones, R@K of every two, and accuracies by unseen classes; of one of sets what
    `set_figures` says. One that cannot be measured, whatever the reason, costs none of the others. `found` gives what
    `compare_split` found, `reranked` what a second stage makes of it; further scorings go on in `folder`.
    """
    every = cache(lambda: EveryPair(model, encoded, store, split, settings, (crossed(model), found), folder))
    several = len(model.interface.inputs) > 2 or bool(settings.enriched)
    figures: dict[str, Any] = {}
    faults = {}
    for name, measure in (
        ("retrieval", lambda: retrieval(model, encoded, found(), store, split)),
        ("reranked", lambda: _second(model, encoded, reranked, store, split) if reranked else None),
        ("true_relevance", lambda: _true_relevance(model, encoded, found, store, split)),
        ("image_class_R@1", lambda: _class_recall(model, encoded, store, split)),
        ("caption_spearman", lambda: _caption_spearman(model, encoded, store, split)),
        ("pairs", lambda: every().retrieval() if several else None),
        ("zero_shot", lambda: every().zero_shot()),
        ("sets", lambda: _sets(model, encoded, found(), store, split, folder)),
    ):
        try:
            measured: Any = measure()
        except CusaError as error:
            faults[name] = error.message
        except Exception as error:  # a scorer, or a head, is the user's own code
            faults[name] = f"{type(error).__name__}: {error}"
        else:
            if measured is not None:
                figures |= measured if name == "retrieval" else {name: measured}
    return Evaluated(figures, faults)


def _second(
    model: AlignedModel, encoded: SplitEncoded, reranked: Callable[[], Similarities], store: Store, split: str
) -> dict[str, Any]:
    """Return what a second stage gives: all figures of retrieval, and those on the true relevance."""
    figures = retrieval(model, encoded, reranked(), store, split)
    true = _true_relevance(model, encoded, reranked, store, split)
    return figures | ({"true_relevance": true} if true else {})


def _true_relevance(
    model: AlignedModel, encoded: SplitEncoded, found: Callable[[], Similarities], store: Store, split: str
) -> dict[str, dict[str, float]] | None:
    relevant = true_relevance(store, split)
    if relevant is None or not shows_pairs(model):
        return None
    # What the store knows must be of every item; absent ones are left out of that.
    for matrix in (relevant, sparse.csr_array(relevant.T)):
        checked_relevance(matrix, matrix.shape)
    first, second, similar = _there(model, encoded, found(), store, split)
    relevant = sparse.csr_array(relevant[first.places][:, second.places])
    both = (similar.rows, relevant), (similar.columns, sparse.csr_array(relevant.T))
    ways = directions((first.name, second.name))
    return {way: by_relevance(rows, matrix) for way, (rows, matrix) in zip(ways, both, strict=True)}


def _class_recall(model: AlignedModel, encoded: SplitEncoded, store: Store, split: str) -> float | None:
    rows = store.rows(split, "sample")
    labels = store.samples["label"].slice(rows[0], len(rows))
    if labels.null_count:
        return None
    if model.interface.inputs[crossed(model)[0]].level != "sample":
        return None
    first = SplitModalities(model, encoded, store, split).ranked(crossed(model)[0])
    names = np.array(labels.to_pylist())[first.places]
    images = first.encoded.unimodal.to(exact_device(model.device))
    return class_recall(names[nearest_other(images)], names)


def _caption_spearman(model: AlignedModel, encoded: SplitEncoded, store: Store, split: str) -> float | None:
    pairs, name = caption_pairs(store, split), crossed(model)[1]
    if pairs is None or model.interface.inputs[name].level != "caption":
        return None
    first, second, gold = pairs
    captions = SplitModalities(model, encoded, store, split).ranked(name)
    there = np.isin(first, captions.places) & np.isin(second, captions.places)
    texts = captions.whole.unimodal.numpy()
    return spearman(paired_cosine(texts[first[there]], texts[second[there]]), gold[there])


def cross_modal(found: Similarities, own: sparse.csr_array, folds: int = 1) -> dict[str, Any]:
    """Return R@1, R@5, R@10 in percent and median ranks, both ways, and RSUM: by fold, then their mean.

    Args:
        found: of S images with T texts.
        own: (S, T) sparse, which text is whose.
        folds: into how many runs of images, by row, the split is divided; each is searched by itself, with the texts
            of its images (COCO 1K: the 5,000 images of the test split in 5 folds).

    Raises:
        CusaError: the images do not divide into so many folds, or an embedding is not finite.
    """
    images = found.shape[0]
    if images % folds:
        raise CusaError(f"{images} images do not divide into {folds} folds of one size.")
    if folds == 1:
        return _figures(both_ways(found, own), DIRECTIONS)
    measured = []
    for start in range(0, images, images // folds):
        places = np.arange(start, start + images // folds)
        run = sparse.csr_array(own[places])
        theirs = np.unique(run.indices)
        measured.append(_figures(both_ways(found.part(places, theirs), sparse.csr_array(run[:, theirs])), DIRECTIONS))
    mean: dict[str, Any] = _mean(measured)
    return mean


def _figures(ranks: tuple[Ranks, Ranks], ways: tuple[str, str]) -> dict[str, Any]:
    measured: dict[str, Any] = {name: recalls(found) for name, found in zip(ways, ranks, strict=True)}
    measured["RSUM"] = sum(sum(figures.values()) for figures in measured.values())
    measured["median_rank"] = {name: median_rank(found) for name, found in zip(ways, ranks, strict=True)}
    return measured


def _mean(figures: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of nested dictionaries of them, name by name."""
    if isinstance(figures[0], dict):
        return {name: _mean([one[name] for one in figures]) for name in figures[0]}
    return sum(figures) / len(figures)


def ownership(store: Store, split: str) -> sparse.csr_array:
    """Return which caption is whose: sparse (images, captions) of a split."""
    captions = store.rows(split, "caption")
    return _incidence(store, split, captions, store.captions["sample"].to_numpy()[captions])


def true_relevance(store: Store, split: str) -> sparse.csr_array | None:
    """Return which caption is true of which image: sparse (images, captions) of a split; None if it is not known."""
    table, rows = store.relevance, store.rows(split, "caption")
    if table is None:
        return None
    captions, samples = table["caption"].to_numpy(), table["sample"].to_numpy()
    here = (captions >= rows[0]) & (captions <= rows[-1])
    return _incidence(store, split, captions[here], samples[here]) if here.any() else None


def _incidence(store: Store, split: str, captions: NDArray[np.int64], samples: NDArray[np.int64]) -> sparse.csr_array:
    images, texts = store.rows(split, "sample"), store.rows(split, "caption")
    matrix = sparse.csr_array(
        (np.ones(len(captions), dtype=bool), (samples - images[0], captions - texts[0])),
        shape=(len(images), len(texts)),
    )
    matrix.sort_indices()
    return matrix


def caption_pairs(store: Store, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the graded caption pairs of a split: first and second by their place in it, and how alike they are."""
    table, rows = store.caption_pairs, store.rows(split, "caption")
    if table is None:
        return None
    first, second = table["first"].to_numpy(), table["second"].to_numpy()
    here = (first >= rows[0]) & (first <= rows[-1])
    if not here.any():
        return None
    return first[here] - rows[0], second[here] - rows[0], table["similarity"].to_numpy()[here]
