"""The models that a page shows side by side: their embeddings of one split, and what is known of their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stores.parameters import Loss
from train.evaluation.embed import SplitEmbeddings
from train.evaluation.models import StudentModel
from train.evaluation.rankings import Similarity


class Tested(NamedTuple):
    """What a page needs of a model that was measured on a split."""

    embeddings: SplitEmbeddings
    """Of the split, by the weights that were measured."""
    similarity: Similarity | None = None
    """The model's own, `AlignedModel.similarity`; None: the cosine."""
    device: torch.device = torch.device("cpu")
    """Where the model's own similarity computes."""
    temperatures: Mapping[str, float] | None = None
    """By the names of `Taus`, as the weights have them; None where it was not trained here."""

    def cross_modal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-modal embeddings of images and texts where they can be compared."""
        device = torch.device("cpu") if self.similarity is None else self.device
        return self.embeddings.image.to(device), self.embeddings.text.to(device)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A model on a page."""

    name: str
    """How the page calls it."""
    tested: Tested
    loss: Loss | None = None
    """What it was trained with; None where that is unknown."""
    epochs: Sequence[Mapping[str, float]] = ()
    """Of its training, by the names of epochs.csv; what that leaves empty is absent."""

    @property
    def plain(self) -> bool:
        """Whether it is known to have been trained without soft labels."""
        return self.loss is not None and not (self.loss.alpha or self.loss.beta)


def tested(model: StudentModel, embeddings: SplitEmbeddings) -> Tested:
    """Return a loaded model with its `embeddings` of a split."""
    learned = None if model.parameters is None else model.aligned.temperatures.values()
    return Tested(embeddings, model.aligned.similarity, model.device, learned)


def dashed(models: Sequence[Shown]) -> Shown | None:
    """Return which of two models has dashed lines: the one without soft labels, or else the first."""
    if len(models) != 2:
        return None
    plain = [model for model in models if model.plain]
    return plain[0] if len(plain) == 1 else models[0]
