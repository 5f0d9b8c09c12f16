"""Terms that coordinate any number of modalities, each with each: PCMC and PCMR (arXiv 2401.16347).

The paper's text was not in reach: its forms are known, masks, normalisation and weights are derived (docs/methods.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from train.losses.comparison import Comparison
from train.losses.functional import Far, Pair, regression
from train.losses.presence import weighted_mean
from train.losses.terms import Temperature, Term, contrasted


class PairwiseTerm(Term):
    """The weighted mean over every two modalities that a batch can tell apart; the others are counted and told."""

    def __init__(
        self,
        name: str,
        weight: float,
        temperatures: Mapping[str, Temperature] | None = None,
        weights: Mapping[Pair, float] | None = None,
    ) -> None:
        """`weights` are those of pairs of modalities, in either order; the others weigh 1."""
        super().__init__(name, weight, temperatures)
        self._weights = weights or {}
        self._counted: dict[Pair, tuple[Tensor, int]] = {}

    def forward(self, compared: Comparison) -> Tensor:
        losses, counted, heights = [], [], []
        for pair in compared.pairs:
            losses.append(self._loss(compared, *pair))
            counted.append(compared.cells(*pair).countable)
            heights.append(self._weights.get(pair, self._weights.get(pair[::-1], 1.0)))
            if torch.is_grad_enabled():
                used, seen = self._counted.get(pair, (torch.zeros_like(counted[-1], dtype=torch.int64), 0))
                self._counted[pair] = used + counted[-1], seen + 1
        return weighted_mean(losses, counted, heights)

    @abstractmethod
    def _loss(self, compared: Comparison, first: str, second: str) -> Tensor:
        """Return the loss of two modalities; whatever is finite where they cannot be told apart."""

    def before_epoch(self, epoch: int) -> None:
        self._counted = {}

    def remark(self, value: float, batch_size: int) -> str:
        unused = {pair: 1 - int(used) / seen for pair, (used, seen) in self._counted.items()}
        if not any(unused.values()):
            return ""
        said = ", ".join(f"{first}–{second} in {share:.1%}" for (first, second), share in unused.items() if share)
        return (
            f"{self.name} could not use {said} of the batches, which held no two items that match, or none that do "
            f"not. A larger train.batch_size leaves fewer unused."
        )


class PCMC(PairwiseTerm):
    """Pairwise cross-modal contrastive: InfoNCE between every two modalities (C1 to C3)."""

    def __init__(
        self, weight: float = 1.0, weights: Mapping[Pair, float] | None = None, each: tuple[str, ...] = ()
    ) -> None:
        """`each` names the modalities where every two have a temperature of their own; else all share one."""
        names = {f"PCMC {a}–{b}" for k, a in enumerate(each) for b in each[k + 1 :]} or {"PCMC"}
        super().__init__("PCMC", weight, {name: Temperature(0.07, 0.01, 1.0) for name in sorted(names)}, weights)
        self._each = bool(each)

    def _loss(self, compared: Comparison, first: str, second: str) -> Tensor:
        tau = self.temperatures[f"PCMC {first}–{second}" if self._each else "PCMC"]
        return contrasted(compared, first, second, tau())


class PCMR(PairwiseTerm):
    """Pairwise cross-modal regression: what matches has a cosine of 1, what does not of 0 (C4, C5)."""

    def __init__(
        self,
        weight: float = 1.0,
        weights: Mapping[Pair, float] | None = None,
        gamma: float = 0.5,
        far: Far = "zero",
    ) -> None:
        """`gamma` is the matching cells' weight, and `far` what is wrong with the others' cosines (`regression`)."""
        super().__init__("PCMR", weight, weights=weights)
        self._gamma = gamma
        self._far: Far = far

    def _loss(self, compared: Comparison, first: str, second: str) -> Tensor:
        same, present = compared.same(first, second), compared.present(first, second)
        cells = compared.cells(first, second)
        return regression(compared.scores(first, second), same, present, cells, self._gamma, self._far)
