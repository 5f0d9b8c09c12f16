"""Evaluation on a split: cross-modal tasks by the cross-modal heads, uni-modal ones by the uni-modal heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from stores import Store
from train.embed import SplitEmbeddings
from train.losses import cosine_similarity
from train.metrics import class_recall, first_ranks, many_to_many, recalls, spearman
from train.model import AlignedModel


def retrieval(model: AlignedModel, embeddings: SplitEmbeddings, store: Store, split: str) -> dict[str, Any]:
    """Return R@1, R@5, R@10 both ways and RSUM over a split."""
    return _retrieval(_similarity(model, embeddings), _ownership(store, split))


def evaluate(model: AlignedModel, embeddings: SplitEmbeddings, store: Store, split: str) -> dict[str, Any]:
    """Return everything that the store allows to measure on a split.

    R@K both ways and RSUM; on the true relevance, where the source has it, mAP@R, R-Precision and R@1 both ways;
    image R@1 by class and the Spearman correlation of caption similarity.
    """
    similarity = _similarity(model, embeddings)
    measured = _retrieval(similarity, _ownership(store, split))
    if (relevant := _relevance(store, split)) is not None:
        measured["true_relevance"] = {
            "image_to_text": many_to_many(similarity, relevant),
            "text_to_image": many_to_many(similarity.T, sparse.csr_array(relevant.T)),
        }
    samples = store.rows(split, "image")
    labels = store.samples["label"].slice(samples[0], len(samples))
    if labels.null_count == 0:
        images = cosine_similarity(embeddings.uni_image, embeddings.uni_image).numpy()
        measured["image_class_R@1"] = class_recall(images, np.array(labels.to_pylist()))
    if (pairs := _caption_pairs(store, split)) is not None:
        first, second, gold = pairs
        scores = torch.nn.functional.cosine_similarity(embeddings.uni_text[first], embeddings.uni_text[second])
        measured["caption_spearman"] = spearman(scores.numpy(), gold)
    return measured


@torch.inference_mode()
def _similarity(model: AlignedModel, embeddings: SplitEmbeddings) -> NDArray[np.float32]:
    """Return the student's own similarity of all images with all captions: (S, C)."""
    device = next(model.parameters()).device
    similarity = (model.similarity or cosine_similarity)(embeddings.image.to(device), embeddings.text.to(device))
    scores: NDArray[np.float32] = similarity.float().cpu().numpy()
    return scores


def _retrieval(similarity: NDArray[np.float32], own: sparse.csr_array) -> dict[str, Any]:
    measured: dict[str, Any] = {
        "image_to_text": recalls(first_ranks(similarity, own)),
        "text_to_image": recalls(first_ranks(similarity.T, sparse.csr_array(own.T))),
    }
    measured["RSUM"] = sum(measured["image_to_text"].values()) + sum(measured["text_to_image"].values())
    return measured


def _ownership(store: Store, split: str) -> sparse.csr_array:
    """Return which caption is whose, (images, captions) of the split."""
    captions = store.rows(split, "text")
    return _incidence(store, split, captions, store.captions["sample"].to_numpy()[captions])


def _relevance(store: Store, split: str) -> sparse.csr_array | None:
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


def _caption_pairs(store: Store, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    table, rows = store.caption_pairs, store.rows(split, "text")
    if table is None:
        return None
    first, second = table["first"].to_numpy(), table["second"].to_numpy()
    here = (first >= rows[0]) & (first <= rows[-1])
    if not here.any():
        return None
    return first[here] - rows[0], second[here] - rows[0], table["similarity"].to_numpy()[here]
