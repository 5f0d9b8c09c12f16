"""Learning from pairs of which an unknown part is wrong (L2RM, 2403.05105, CVPR 2024), as terms beside any others.

1. While warming up, a symmetric cross-entropy of all pairs, which bears wrong ones, is the whole loss of the pairs.
2. At the start of each later epoch the losses of all pairs are surveyed and split by a mixture of two components: each
   pair has a clean probability, kept as a buffer, so that a resumed run goes on with the same split.
3. Terms that learn from pairs, such as InfoNCE, learn from the clean ones alone: the others are not trusted.
4. The rest of each batch is matched anew: a partial transport between its images and texts, where no pair as given is
   allowed, gives soft targets, and a symmetric KL divergence draws the student towards them.

A batch holds clean and other pairs as they come, so that an epoch's order is the same as without. A row that lacks an
image or a text has no pair: all of this leaves it out.
Shapes: M rows, N columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stores.hardware import exact_dtype
from stores.parameters import Rematching
from train.losses.comparison import TRUSTED, Comparison, Instances
from train.losses.functional import symmetric_cross_entropy, symmetric_divergence
from train.losses.terms import Term, TrainingPairs
from train.losses.transport import potentials, share_floors, targets

MARGIN = 0.2
"""Of the surveyed losses."""
_PAIR = ("image", "text")
_POTENTIALS = {"image": "potentials of images", "text": "potentials of texts"}


class WarmUp(Term):
    """The symmetric cross-entropy of all pairs, in the first epochs alone."""

    paired = False

    def __init__(self, settings: Rematching) -> None:
        super().__init__("warm-up")
        self._epochs, self._tau, self._now = settings.warm_up, settings.tau, True

    def before_epoch(self, epoch: int) -> None:
        self._now = epoch < self._epochs

    def forward(self, compared: Comparison) -> Tensor:
        scores, reverse = compared.scores("image", "text"), compared.scores("text", "image")
        if not self._now:
            return torch.zeros_like(scores[0, 0])
        weights, allowed = compared.weights(*_PAIR), compared.allowed(*_PAIR)
        same = compared.same("image", "text")
        return symmetric_cross_entropy(scores, self._tau, same, reverse, weights=weights, allowed=allowed)


class Rematched(Term):
    """The divergence of the pairs that are not clean from what a partial transport matches them with.

    It is their sum over the batch's size, so that it weighs as much as they are many.
    """

    paired = False
    prepares = True
    clean: Tensor
    """(captions,) float32, clean probabilities, 1 where a pair was never surveyed."""
    split_at: Tensor
    """(), the epoch of the last survey, −1 before the first."""

    def __init__(self, settings: Rematching) -> None:
        super().__init__("rematched", settings.weight)
        self._settings = settings
        self.cost = LearnedCost() if settings.cost == "learned" else None
        self._pairs = TrainingPairs(0, 0)
        self._epoch = 0
        self.register_buffer("clean", torch.ones(0))
        self.register_buffer("split_at", torch.tensor(-1))

    def begin(self, pairs: TrainingPairs) -> None:
        self._pairs = pairs
        self.clean = self.clean.new_ones(pairs.count)
        if pairs.clean is not None:
            self.clean.copy_(torch.from_numpy(pairs.clean))

    def before_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def wants_survey(self, epoch: int) -> bool:
        if self._pairs.clean is not None:
            return False
        return epoch >= self._settings.warm_up and int(self.split_at) != epoch

    def pair_losses(self, compared: Comparison) -> Tensor:
        """Return the hinge over all negatives of the block, both ways: (M,), NaN of a row that has no pair."""
        losses = torch.zeros_like(compared.scores("image", "text")[:, 0])
        having, candidates = (_paired(side) for side in (compared.rows, compared.columns))
        for first, second in (_PAIR, _PAIR[::-1]):
            scores = compared.scores(first, second)
            excess = (MARGIN + scores - scores.gather(1, compared.rows.places[:, None])).clamp(min=0)
            excess = excess.masked_fill(compared.same(first, second) | ~candidates, 0)
            losses = losses + excess.sum(dim=1) / candidates.sum().clamp(min=1)
        return losses.masked_fill(~having, torch.nan)

    def take_survey(self, epoch: int, captions: Tensor, losses: Tensor) -> None:
        from stores.clean_mixture import clean_probabilities  # here, since scikit-learn takes seconds to load

        captions, losses = captions[paired := ~losses.isnan()], losses[paired]
        found = clean_probabilities(losses.cpu().double().numpy(), self._settings.mixture)
        self.clean[captions - self._pairs.first] = torch.from_numpy(found).to(self.clean.dtype).to(self.clean.device)
        self.split_at.fill_(epoch)

    def clean_column(self) -> Tensor | None:
        return self.clean if self._pairs.clean is not None or int(self.split_at) >= 0 else None

    def figures(self) -> dict[str, float]:
        if self.clean_column() is None:
            return {}
        clean = self.clean.cpu().numpy()
        return {"kept": float((clean > 0.5).mean()), **_judged(clean, self._pairs.wrong)}

    def prepare(self, whole: Comparison) -> dict[str, Tensor]:
        captions = whole.columns.numbers["caption"] - self._pairs.first
        if self._epoch < self._settings.warm_up:
            return {TRUSTED: torch.zeros_like(captions, dtype=torch.bool)}
        trusted = (self.clean[captions] > 0.5) | ~_paired(whole.columns)
        dtype, device = exact_dtype(captions.device), captions.device
        notes = {name: torch.zeros(len(captions), dtype=dtype, device=device) for name in _POTENTIALS}
        chosen = torch.nonzero(~trusted)[:, 0]
        if len(chosen):
            scores = whole.scores("image", "text")[chosen][:, chosen]
            allowed = ~whole.same("image", "text")[chosen][:, chosen]
            found = potentials(self._costs(scores), self._settings.mass, self._settings.reg, allowed)
            for note, potential in zip(notes.values(), found, strict=True):
                note[chosen] = potential
        return {TRUSTED: trusted, **{_POTENTIALS[name]: note for name, note in notes.items()}}

    def forward(self, compared: Comparison) -> Tensor:
        if _POTENTIALS["image"] not in compared.columns.notes:
            nothing = torch.zeros_like(compared.scores("image", "text")[0, 0])
            # The cost takes part with a gradient of zero, as several processes expect of a parameter.
            return nothing if self.cost is None else nothing + 0 * (self.cost.scale + self.cost.shift)
        settings = self._settings
        others, candidates = (~side.notes[TRUSTED] for side in (compared.rows, compared.columns))
        allowed = candidates & ~compared.same("image", "text")
        paired = _paired(compared.columns)
        dtype = exact_dtype(paired.device)
        weights = (others & allowed.any(dim=1)).to(dtype) * (len(paired) / paired.sum().clamp(min=1).to(dtype))
        total = torch.zeros_like(compared.scores("image", "text")[0, 0])
        for first, second in (("image", "text"), ("text", "image")):
            scores = compared.scores(first, second)
            costs, potential = self._costs(scores), compared.columns.notes[_POTENTIALS[second]]
            wanted = targets(costs, potential, settings.reg, allowed)
            floors = share_floors(costs, compared.rows.notes[_POTENTIALS[first]], potential, settings.reg, allowed)
            among = candidates | ~candidates.any()
            total = total + symmetric_divergence(scores, wanted, settings.tau, weights, among, floors)
            if self.cost is not None:
                right = (~others).to(scores.dtype)
                total = total + self.cost.loss(scores, compared.rows.places, ~compared.same(first, second), right)
        return total / 2

    @torch.no_grad()
    def _costs(self, scores: Tensor) -> Tensor:
        costs: Tensor = 1 - scores if self.cost is None else self.cost(scores)
        return costs


class LearnedCost(nn.Module):
    """cost = [1 − scale · score − shift]₊, at first 1 − score: learned from pairs held to be right (L2RM's idea).

    The released code learns a linear layer over the positions of a shuffled batch, from right pairs alone: its least
    loss is cost 0 everywhere. Here the cost is a monotone map of each score, and the other cells of right pairs' rows
    count as wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, scores: Tensor) -> Tensor:
        """Return the costs of scores of any shape."""
        return (1 - self.scale.clamp(min=0) * scores - self.shift).clamp(min=0)

    def loss(self, scores: Tensor, own: Tensor, wrong: Tensor, weights: Tensor) -> Tensor:
        """Return how far right cells are from cost 0 and the others of their rows from 1, without gradient of scores.

        Args:
            scores: (M, N).
            own: (M,) integers, each row's right column.
            wrong: (M, N) bool, the cells that count as wrong.
            weights: (M,) of the rows, zero for those that are not held to be right.
        """
        costs = self(scores.detach())
        others = ((1 - costs).clamp(min=0) * wrong).sum(dim=1) / wrong.sum(dim=1).clamp(min=1)
        each: Tensor = (costs.gather(1, own[:, None])[:, 0] + others) * weights
        return each.mean()


def _paired(side: Instances) -> Tensor:
    """Return which rows have an image and a text: (n,) bool."""
    having = side.having(_PAIR)
    return torch.ones_like(side.groups, dtype=torch.bool) if having is None else having


def _judged(clean: np.ndarray, wrong: np.ndarray | None) -> dict[str, float]:
    """Return how well a split finds the pairs that are known to be wrong."""
    if wrong is None or wrong.all() or not wrong.any():
        return {}
    from sklearn.metrics import roc_auc_score

    found = clean <= 0.5
    hits = float((found & wrong).sum())
    return {
        "AUC": float(roc_auc_score(wrong, -clean)),
        "precision": hits / max(1.0, float(found.sum())),
        "recall": hits / float(wrong.sum()),
    }
