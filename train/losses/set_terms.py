"""Terms on embedding sets, within each modality and between two: GD, ISD, diversity, MMD (`train.losses.sets`)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from models.encoded import Encoded
from models.scoring import unit
from stores.errors import StudentError
from stores.parameters import Loss
from train.losses.comparison import Comparison
from train.losses.presence import shares
from train.losses.sets import Form, global_discriminative, intra_set_divergence, mmd, set_diversity
from train.losses.terms import Hinge, Term

Of = Literal["final", "residual"]


class WithinSets(Term):
    """A loss of each item's own set, summed over the modalities."""

    paired = False

    def forward(self, compared: Comparison) -> Tensor:
        losses = [self._loss(items, compared.weights(modality)) for modality, items in compared.rows.encoded.items()]
        return torch.stack(losses).sum()

    @abstractmethod
    def _loss(self, items: Encoded, weights: Tensor | None) -> Tensor:
        """Return the loss of a modality's rows; `weights` are their shares in the mean."""


class GlobalDiscriminative(WithinSets):
    """GD: members move away from the vector that their set shares (MaxMatch, L_GD)."""

    def __init__(self, weight: float, scale: float, margin: float) -> None:
        super().__init__("GD", weight)
        self._scale, self._margin = scale, margin

    def _loss(self, items: Encoded, weights: Tensor | None) -> Tensor:
        return global_discriminative(_members(items), _shared(items), self._scale, self._margin, weights)


class IntraSetDivergence(WithinSets):
    """ISD: members of a set move apart (MaxMatch, L_ISD); of its final members, or of what each adds to the shared."""

    def __init__(self, weight: float, scale: float, margin: float, form: Form, of: Of) -> None:
        super().__init__("ISD", weight)
        self._scale, self._margin, self._of = scale, margin, of
        self._form: Form = form

    def _loss(self, items: Encoded, weights: Tensor | None) -> Tensor:
        vectors = _members(items) if self._of == "final" else _residuals(items)
        return intra_set_divergence(vectors, self._scale, self._margin, self._form, weights)


class SetDiversity(WithinSets):
    """Div: what members add to the shared vector moves apart (PVSE, CVPR 2019)."""

    def __init__(self, weight: float) -> None:
        super().__init__("Div", weight)

    def _loss(self, items: Encoded, weights: Tensor | None) -> Tensor:
        return set_diversity(_residuals(items), weights)


class MMD(Term):
    """The maximum mean discrepancy of every two modalities' members, all of a batch together, summed over the pairs."""

    paired = False

    def __init__(self, weight: float) -> None:
        super().__init__("MMD", weight)

    def forward(self, compared: Comparison) -> Tensor:
        losses = []
        for pair in compared.pairs:
            x, y = (_vectors(compared.rows.encoded[modality]) for modality in pair)
            columns = [_vectors(compared.columns.encoded[modality]) for modality in pair]
            mine, theirs = ([self._shares(compared, one, whole) for one in pair] for whole in (False, True))
            weights = (mine[0], mine[1], theirs[0], theirs[1])
            losses.append(mmd(x, y, columns=(columns[0], columns[1]), weights=weights))
        return torch.stack(losses).sum()

    @staticmethod
    def _shares(compared: Comparison, modality: str, whole: bool) -> Tensor | None:
        """Return the shares of the members of the rows, or of the whole batch; None: equal ones."""
        side = compared.columns if whole else compared.rows
        having, all_having = side.having((modality,)), compared.columns.having((modality,))
        if having is None or all_having is None:
            return None
        return shares(having, all_having).repeat_interleave(_members(side.encoded[modality]).shape[1])


def set_terms(loss: Loss) -> list[Term]:
    """Return what the recipe maxmatch adds to the student's own loss, which is contrastive or its hinge."""
    sets, hinge = loss.sets, loss.hinge
    terms = [
        GlobalDiscriminative(sets.discriminative, sets.scale, sets.margin),
        IntraSetDivergence(sets.divergence, sets.scale, sets.margin, sets.form, sets.of),
        MMD(sets.mmd),
        SetDiversity(sets.diversity),
    ]
    if loss.original != "hinge":
        terms.insert(0, Hinge(sets.hinge, hinge.margin, hinge.negatives, hinge.warm_up, mean=True))
    return [term for term in terms if term.weight]


def _members(items: Encoded) -> Tensor:
    if items.parts is None:
        raise StudentError("The loss is of sets, and the student's items have no parts. Take maxmatch:… for one.")
    return items.parts


def _shared(items: Encoded) -> Tensor:
    if items.shared is None:
        raise StudentError("The loss needs the vector that an item's parts share, and the student gives none.")
    return items.shared


def _residuals(items: Encoded) -> Tensor:
    return _members(items) - _shared(items)[:, None]


def _vectors(items: Encoded) -> Tensor:
    """Return all members of n items at length one: (n, K, D)."""
    return unit(_members(items))
