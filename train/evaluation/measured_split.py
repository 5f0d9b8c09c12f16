"""What is kept of a model that has encoded and compared a split, for a page to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from models.aligned import AlignedModel
from train.evaluation.embed import SplitEncoded
from train.evaluation.evaluate import crossed
from train.evaluation.similarities import Similarities


class MeasuredSplit(NamedTuple):
    """A model on a split, by the weights that were measured."""

    images: Tensor
    """(S, D) by the uni-modal head."""
    texts: Tensor
    """(T, D) by the uni-modal head."""
    similarities: Similarities
    """Of all images with all texts."""
    temperatures: Mapping[str, float] | None = None
    """By name, as the weights have them; None where it was not trained here."""


def measured_split(
    model: AlignedModel,
    encoded: SplitEncoded,
    similarities: Similarities,
    temperatures: Mapping[str, float] | None,
) -> MeasuredSplit:
    """Return what is kept of a model that has encoded and compared a split."""
    images, texts = (encoded[modality].unimodal for modality in crossed(model))
    return MeasuredSplit(images, texts, similarities, temperatures)
