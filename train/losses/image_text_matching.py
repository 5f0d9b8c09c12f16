"""Image-text matching (ITM): a student that looks at both items at once tells pairs from negatives that look alike.

For each text an image, and for each image a text, are drawn from this process's rows by the contrastive loss's own
softmax, so that hard negatives come often; what matches the row is never drawn. Of M rows 3M pairs are matched, and the
loss is the mean of their cross-entropies over no match and match (ALBEF, 2107.07651; X2-VLM, 2211.12402).

CUSA gives the drawn negatives soft labels, and does not publish how. Our reading: a negative's target is (1 − y, y),
y the teachers' cosine of the item that was drawn with the row's own, between 0 and 1, times `soft_negatives`.

Shapes: M rows, N columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stores.errors import TrainingError
from stores.parameters import Matching
from train.losses.comparison import Comparison
from train.losses.terms import Temperature, Term

FLOOR = 1e-5
"""Added to the softmax that negatives are drawn by: each may come."""


class ITM(Term):
    """The cross-entropy of matching, over all pairs that belong together and two negatives for each."""

    matches = True
    _tau: Temperature

    def __init__(self, settings: Matching, tau: Temperature) -> None:
        """`tau` is the contrastive loss's temperature, which the softmax of the draw shares."""
        super().__init__("ITM", settings.weight)
        self.soft = bool(settings.soft_negatives)
        self._soft_negatives = settings.soft_negatives
        # Beside torch's registration: it is another term's.
        self.__dict__["_tau"] = tau

    def forward(self, compared: Comparison) -> Tensor:
        if compared.match is None:
            raise ValueError("The loss matches images with texts, and was given nothing that does.")
        first, second = next(compared.pairs)
        rows = compared.rows
        having = rows.having((first, second))
        kept = rows.places if having is None else rows.places[having]
        own = torch.arange(len(rows.places), device=kept.device) if having is None else having.nonzero()[:, 0]
        scores = compared.scores(first, second)[own][:, kept].detach()
        same = compared.same(first, second)[own][:, kept]
        if not len(own):
            return torch.zeros_like(compared.scores(first, second)[0, 0])
        drawn = draw(scores, same, self._tau().item())
        images, texts = (torch.cat([own, *some]) for some in ((own[drawn.images], own), (own, own[drawn.texts])))
        logits = compared.match(rows.encoded[first], rows.encoded[second], images, texts)
        return matching_loss(logits, self._soft(compared, own, drawn))

    def _soft(self, compared: Comparison, own: Tensor, drawn: Drawn) -> Tensor | None:
        """Return how far each negative matches after all, those of the texts first: (2M,); None: not at all."""
        if not self._soft_negatives:
            return None
        alike = []
        for modality, others in zip(compared.rows.encoded, drawn, strict=False):
            features = compared.rows.teachers[modality][own]
            alike.append((features * features[others]).sum(dim=1))
        return self._soft_negatives * torch.cat(alike).clamp(0, 1)


class Drawn(NamedTuple):
    """The negatives of M rows, by their places among these."""

    images: Tensor
    """(M,), of each text."""
    texts: Tensor
    """(M,), of each image."""


def draw(scores: Tensor, same: Tensor, tau: float) -> Drawn:
    """Draw a negative for every row and column of (M, M) `scores`, by their softmax at `tau`.

    Args:
        scores: of images (rows) and texts (columns).
        same: (M, M) bool, what matches and is not drawn.
        tau: temperature.

    Raises:
        TrainingError: a row has nothing but what matches.
    """
    if not (~same).any(dim=1).all():
        raise TrainingError(
            f"Matching needs negatives, and all {len(same)} pairs of a process's share of the batch are of one image. "
            f"Raise train.batch_size, or take fewer processes."
        )
    ways = (scores.T, same.T), (scores, same)
    drawn = [
        torch.multinomial((torch.softmax(some.float() / tau, dim=1) + FLOOR).masked_fill(own, 0), 1)[:, 0]
        for some, own in ways
    ]
    return Drawn(*drawn)


def matching_loss(logits: Tensor, soft: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of (3M, 2) logits of no match and match: M pairs, then 2M negatives.

    `soft` (2M,) is how far each negative matches after all; None: not at all.
    """
    count = len(logits) // 3
    match = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
    match[:count] = 1
    if soft is not None:
        match[count:] = soft.to(match.dtype)
    logs = torch.log_softmax(logits, dim=1)
    return -((1 - match) * logs[:, 0] + match * logs[:, 1]).mean()
