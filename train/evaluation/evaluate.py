"""Evaluation on a split: cross-modal tasks by the cross-modal heads, uni-modal ones by the uni-modal heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from models.aligned import AlignedModel
from stores import Store
from stores.errors import CusaError
from train.evaluation.embed import SplitEmbeddings
from train.evaluation.metrics import (
    class_recall,
    many_to_many,
    median_rank,
    most_relevant,
    paired_cosine,
    recalls,
    spearman,
)
from train.evaluation.rankings import Ranks, Rows, Similarity, first_ranks, nearest_other, ranks_both_ways, top

DIRECTIONS: Final = ("image_to_text", "text_to_image")


def retrieval(model: AlignedModel, embeddings: SplitEmbeddings, store: Store, split: str) -> dict[str, Any]:
    """Return R@1, R@5, R@10 both ways, RSUM and the median ranks over a split."""
    return cross_modal(*on_device(model, embeddings), ownership(store, split), model.similarity)


class Evaluated(NamedTuple):
    """What could be measured on a split, and by name of a figure why it could not be."""

    figures: dict[str, Any]
    faults: dict[str, str]


def evaluate(model: AlignedModel, embeddings: SplitEmbeddings, store: Store, split: str) -> Evaluated:
    """Measure everything that the store allows to measure on a split.

    R@K both ways, RSUM and median ranks; on the true relevance, where the source has it, mAP@R, R-Precision and R@1
    both ways; image R@1 by class and the Spearman correlation of caption similarity. One that the data do not allow
    costs none of the others.
    """
    images, texts = on_device(model, embeddings)
    figures = cross_modal(images, texts, ownership(store, split), model.similarity)
    faults = {}
    for name, measure in (
        ("true_relevance", lambda: _true_relevance(images, texts, model.similarity, store, split)),
        ("image_class_R@1", lambda: _class_recall(embeddings.uni_image.to(_exact(images.device)), store, split)),
        ("caption_spearman", lambda: _caption_spearman(embeddings.uni_text, store, split)),
    ):
        try:
            if (found := measure()) is not None:
                figures[name] = found
        except CusaError as error:
            faults[name] = error.message
    return Evaluated(figures, faults)


def _true_relevance(
    images: Tensor, texts: Tensor, similarity: Similarity | None, store: Store, split: str
) -> dict[str, dict[str, float]] | None:
    relevant = true_relevance(store, split)
    if relevant is None:
        return None
    matrices = (relevant, sparse.csr_array(relevant.T))
    both = zip(DIRECTIONS, both_ways(images, texts, similarity), matrices, strict=True)
    return {direction: many_to_many(top(rows, most_relevant(matrix)), matrix) for direction, rows, matrix in both}


def _class_recall(images: Tensor, store: Store, split: str) -> float | None:
    rows = store.rows(split, "image")
    labels = store.samples["label"].slice(rows[0], len(rows))
    if labels.null_count:
        return None
    names = np.array(labels.to_pylist())
    return class_recall(names[nearest_other(images)], names)


def _caption_spearman(texts: Tensor, store: Store, split: str) -> float | None:
    pairs = caption_pairs(store, split)
    if pairs is None:
        return None
    first, second, gold = pairs
    return spearman(paired_cosine(texts[first].numpy(), texts[second].numpy()), gold)


def cross_modal(
    images: Tensor, texts: Tensor, own: sparse.csr_array, similarity: Similarity | None = None, folds: int = 1
) -> dict[str, Any]:
    """Return R@1, R@5, R@10 in percent and median ranks, both ways, and RSUM: by fold, then their mean.

    Args:
        images: (S, D).
        texts: (T, D), on the same device.
        own: (S, T) sparse, which text is whose.
        similarity: the model's own, of images with texts; None: cosine.
        folds: into how many runs of images, by row, the split is divided; each is searched by itself, with the texts
            of its images (COCO 1K: the 5,000 images of the test split in 5 folds).

    Raises:
        CusaError: the images do not divide into so many folds, an embedding is not finite, or one has no partner.
    """
    if len(images) % folds:
        raise CusaError(f"{len(images)} images do not divide into {folds} folds of one size.")
    size, found = len(images) // folds, []
    for start in range(0, len(images), size):
        run = sparse.csr_array(own[start : start + size])
        theirs = np.unique(run.indices)
        part = texts if folds == 1 else texts[torch.from_numpy(theirs).long().to(texts.device)]
        inside = run if folds == 1 else sparse.csr_array(run[:, theirs])
        found.append(_figures(_ranks(images[start : start + size], part, inside, similarity)))
    mean: dict[str, Any] = _mean(found)
    return mean


def both_ways(images: Tensor, texts: Tensor, similarity: Similarity | None) -> tuple[Rows, Rows]:
    """Return the rows of similarities from images to texts, and from texts to images."""
    if similarity is None:
        return Rows(queries=images, candidates=texts), Rows(queries=texts, candidates=images)
    return (
        Rows(queries=images, candidates=texts, similarity=similarity),
        Rows(
            queries=texts, candidates=images, similarity=lambda queries, all_images: similarity(all_images, queries).T
        ),
    )


def on_device(model: AlignedModel, embeddings: SplitEmbeddings) -> tuple[Tensor, Tensor]:
    """Return the cross-modal embeddings of images and texts where they are to be ranked."""
    device = next(model.parameters()).device
    if model.similarity is None:
        device = _exact(device)
    return embeddings.image.to(device), embeddings.text.to(device)


def _exact(device: torch.device) -> torch.device:
    """Return the device for exact cosine: that needs float64, which Apple's accelerator lacks."""
    return torch.device("cpu") if device.type == "mps" else device


def _ranks(images: Tensor, texts: Tensor, own: sparse.csr_array, similarity: Similarity | None) -> tuple[Ranks, Ranks]:
    if similarity is None:
        return ranks_both_ways(images, texts, own)
    to_texts, to_images = both_ways(images, texts, similarity)
    return first_ranks(to_texts, own), first_ranks(to_images, sparse.csr_array(own.T))


def _figures(ranks: tuple[Ranks, Ranks]) -> dict[str, Any]:
    measured: dict[str, Any] = {name: recalls(found) for name, found in zip(DIRECTIONS, ranks, strict=True)}
    measured["RSUM"] = sum(sum(figures.values()) for figures in measured.values())
    measured["median_rank"] = {name: median_rank(found) for name, found in zip(DIRECTIONS, ranks, strict=True)}
    return measured


def _mean(figures: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of nested dictionaries of them, name by name."""
    if isinstance(figures[0], dict):
        return {name: _mean([one[name] for one in figures]) for name in figures[0]}
    return sum(figures) / len(figures)


def ownership(store: Store, split: str) -> sparse.csr_array:
    """Return which caption is whose: sparse (images, captions) of a split."""
    captions = store.rows(split, "text")
    return _incidence(store, split, captions, store.captions["sample"].to_numpy()[captions])


def true_relevance(store: Store, split: str) -> sparse.csr_array | None:
    """Return which caption is true of which image: sparse (images, captions) of a split; None if it is not known."""
    table, rows = store.relevance, store.rows(split, "text")
    if table is None:
        return None
    captions, samples = table["caption"].to_numpy(), table["sample"].to_numpy()
    here = (captions >= rows[0]) & (captions <= rows[-1])
    return _incidence(store, split, captions[here], samples[here]) if here.any() else None


def _incidence(store: Store, split: str, captions: NDArray[np.int64], samples: NDArray[np.int64]) -> sparse.csr_array:
    images, texts = store.rows(split, "image"), store.rows(split, "text")
    matrix = sparse.csr_array(
        (np.ones(len(captions), dtype=bool), (samples - images[0], captions - texts[0])),
        shape=(len(images), len(texts)),
    )
    matrix.sort_indices()
    return matrix


def caption_pairs(store: Store, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the graded caption pairs of a split: first and second by their place in it, and how alike they are."""
    table, rows = store.caption_pairs, store.rows(split, "text")
    if table is None:
        return None
    first, second = table["first"].to_numpy(), table["second"].to_numpy()
    here = (first >= rows[0]) & (first <= rows[-1])
    if not here.any():
        return None
    return first[here] - rows[0], second[here] - rows[0], table["similarity"].to_numpy()[here]
