"""The terms that an objective is the weighted sum of. A term knows its name, its temperatures and its settings.

A user's own derives from `Term` and is named `package.module:factory` (docs/training.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.losses.comparison import Comparison, SoftLabels
from train.losses.functional import Negatives, Reduction, csa_loss, hinge_loss, info_nce, usa_loss
from train.losses.presence import weighted_mean

CUSA_BOUNDS: Final = (0.05, 0.01, 0.10)
X2VLM_BOUNDS: Final = (0.07, 0.001, 0.5)


class Temperature(nn.Module):
    """A learned temperature, kept in log space and within its bounds by `clamp_` after every optimiser step."""

    def __init__(self, start: float, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        return self.log.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the temperature back within its bounds."""
        self.log.clamp_(math.log(self.low), math.log(self.high))


@dataclass(frozen=True)
class TrainingPairs:
    """The pairs that a training goes over, by their captions' numbers: `count` from `first` on."""

    first: int
    count: int
    wrong: NDArray[np.bool_] | None = None
    """(count,), which are known to be wrong; None: nothing is known."""
    clean: NDArray[np.float64] | None = None
    """(count,), how likely each is right, where a file says it."""


class Term(nn.Module, ABC):
    """A loss with its weight. Its parameters and buffers are trained, saved and resumed with the model.

    `forward` is given a `Comparison` and returns a scalar: the mean over the rows, or what follows from it, so that the
    mean over equal shares of a batch is the whole batch's loss.
    """

    soft: bool = False
    """Whether it needs the teachers' features."""
    matches: ClassVar[bool] = False
    """Whether it needs a student that matches (`Comparison.match`)."""
    unimodal: ClassVar[bool] = False
    """Whether it teaches the uni-modal heads."""
    taught: tuple[str, ...] | None = None
    """Of which modalities; None: of all."""
    paired: bool = True
    """Whether it takes the items of a row to belong together: it then sees the pairs alone that are trusted."""
    prepares: ClassVar[bool] = False
    """Whether it notes something of the rows before the loss."""

    def __init__(self, name: str, weight: float = 1.0, temperatures: Mapping[str, Temperature] | None = None) -> None:
        """`name`, and those of the `temperatures`, are what curves, tables and pages call them."""
        super().__init__()
        self.name, self.weight = name, weight
        self.temperatures = nn.ModuleDict(temperatures)

    @abstractmethod
    def forward(self, compared: Comparison) -> Tensor:
        """Return the loss, a scalar."""

    def before_epoch(self, epoch: int) -> None:
        """Learn that epoch `epoch` (from 0) begins, or is gone on with."""

    def begin(self, pairs: TrainingPairs) -> None:
        """Learn which pairs a training has; before its first epoch, and before what a checkpoint keeps is loaded."""

    def wants_survey(self, epoch: int) -> bool:
        """Tell whether all pairs of the epoch should be looked at before it begins, or is gone on with."""
        return False

    def pair_losses(self, compared: Comparison) -> Tensor:
        """Return what is surveyed of each row of a block: (M,)."""
        raise NotImplementedError

    def take_survey(self, epoch: int, captions: Tensor, losses: Tensor) -> None:
        """Learn the losses (n,) of all pairs of the epoch, by their captions' numbers (n,)."""

    def prepare(self, whole: Comparison) -> dict[str, Tensor]:
        """Return notes (N, …) of the columns, given the comparison of all with all, without gradient."""
        return {}

    def clean_column(self) -> Tensor | None:
        """Return how likely each pair is right, (captions,), where the term has judged them."""
        return None

    def figures(self) -> dict[str, float]:
        """Return what curves should show of the term's state at the end of an epoch."""
        return {}

    def remark(self, value: float, batch_size: int) -> str:
        """Say what a person should know of an epoch whose mean loss was `value`; usually nothing."""
        return ""


class InfoNCE(Term):
    """InfoNCE between every two modalities (CUSA, eq. 1–4); the mean over those pairs that have anchors."""

    def __init__(
        self, weight: float = 1.0, reduction: Reduction = "mean", bounds: tuple[float, float, float] = CUSA_BOUNDS
    ) -> None:
        """`bounds` are the temperature's start, lowest and highest."""
        super().__init__("InfoNCE", weight, {"InfoNCE": Temperature(*bounds)})
        self._reduction: Reduction = reduction

    def forward(self, compared: Comparison) -> Tensor:
        tau = self.temperatures["InfoNCE"]()
        losses, anchored = [], []
        for first, second in compared.pairs:
            losses.append(contrasted(compared, first, second, tau, self._reduction))
            anchored.append(_anchored(compared, first, second))
        return weighted_mean(losses, anchored)


class CSA(Term):
    """Cross-modal soft-label alignment (CUSA, eq. 6) between every two modalities that have teachers."""

    soft = True

    def __init__(self, weight: float, labels: SoftLabels) -> None:
        super().__init__("CSA", weight, {"CSA": Temperature(0.45, 0.10, 0.99)})
        self._labels = labels

    def forward(self, compared: Comparison) -> Tensor:
        tau = self.temperatures["CSA"]()
        losses, anchored = [], []
        for both in compared.pairs:
            if not set(both) <= compared.rows.teachers.keys():
                continue
            targets = [compared.labels(modality, self._labels, both) for modality in both]
            scores, reverse = compared.scores(*both), compared.scores(*both[::-1])
            masks = compared.weights(*both), compared.allowed(*both)
            losses.append(csa_loss(scores, targets[0], targets[1], tau, reverse, *masks))
            anchored.append(_anchored(compared, *both))
        return weighted_mean(losses, anchored)


class USA(Term):
    """Uni-modal soft-label alignment (CUSA, eq. 7, 8) within every modality that has a teacher."""

    soft = True
    unimodal = True
    taught: tuple[str, ...]

    def __init__(self, weight: float, labels: SoftLabels, modalities: tuple[str, ...]) -> None:
        """`modalities` are those with a teacher; each has a temperature of its own."""
        super().__init__("USA", weight, {f"USA {modality}": Temperature(0.45, 0.10, 1.00) for modality in modalities})
        self._labels, self.taught = labels, modalities
        self.paired = labels.mix != "each"

    def forward(self, compared: Comparison) -> Tensor:
        among = [(modality,) if self._labels.mix == "each" else self.taught for modality in self.taught]
        return usa_loss(
            [compared.among(modality) for modality in self.taught],
            [compared.labels(modality, self._labels, some) for modality, some in zip(self.taught, among, strict=True)],
            [self.temperatures[f"USA {modality}"]() for modality in self.taught],
            [compared.weights(*some) for some in among],
            [compared.allowed(*some) for some in among],
        )


class Hinge(Term):
    """The triplet loss with margin between every two modalities, both ways (VSE++, 1707.05612; SGRAF, 2101.01368).

    From a random start the hardest negative alone holds the loss at 2 · margin a row for epochs: every score is alike,
    and what pulls one pair up pulls its hardest negative along. During `warm_up` epochs all violations count.
    """

    def __init__(
        self,
        weight: float = 1.0,
        margin: float = 0.2,
        negatives: Negatives = "hardest",
        warm_up: int = 0,
        mean: bool = False,
    ) -> None:
        """`mean` averages over the batch; else the loss is summed, as the authors do."""
        super().__init__("Hinge", weight)
        self._margin, self._mean, self._warm_up = margin, mean, warm_up
        self._negatives: Negatives = negatives
        self._now: Negatives = negatives

    def before_epoch(self, epoch: int) -> None:
        self._now = "all" if epoch < self._warm_up else self._negatives

    def forward(self, compared: Comparison) -> Tensor:
        losses, anchored = [], []
        for first, second in compared.pairs:
            ways = [self._one_way(compared, *way) for way in ((first, second), (second, first))]
            losses.append(ways[0] + ways[1])
            anchored.append(_anchored(compared, first, second))
        return weighted_mean(losses, anchored) * (1 if self._mean else len(compared.columns.groups))

    def _one_way(self, compared: Comparison, first: str, second: str) -> Tensor:
        masks = compared.weights(first, second), compared.allowed(second)
        scores, own = compared.scores(first, second), compared.rows.places
        return hinge_loss(scores, own, compared.same(first, second), self._margin, self._now, *masks)

    def remark(self, value: float, batch_size: int) -> str:
        plateau = 2 * self._margin * (1 if self._mean else batch_size)
        if self._now != "hardest" or abs(value - plateau) > 0.02 * plateau:
            return ""
        return (
            f"{self.name} stands at {value:.4g}, its plateau of 2 · margin{'' if self._mean else ' · batch size'}: the "
            f"scores are still alike, and the hardest negatives undo what the pairs learn. It may leave it after some "
            f"epochs; loss.hinge.warm_up={self._warm_up + 1} lets all violations count first."
        )


def contrasted(compared: Comparison, first: str, second: str, tau: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the InfoNCE of two modalities, both ways, over the items that are there."""
    scores = compared.scores(first, second)
    reverse = None if compared.rows is compared.columns else compared.scores(second, first)
    anchors = compared.anchors(first, second), compared.anchors(second, first)
    allowed = compared.allowed(second), compared.allowed(first)
    return info_nce(scores, tau, compared.groups(first, second), reduction, reverse, anchors, allowed)


def _anchored(compared: Comparison, first: str, second: str) -> Tensor:
    """Return whether any row of the batch has both: () bool."""
    having = compared.columns.having((first, second))
    return compared.columns.groups.new_ones((), dtype=torch.bool) if having is None else having.any()
