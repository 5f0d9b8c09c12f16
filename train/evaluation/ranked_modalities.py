"""The modalities of a split as they are ranked: the items that are there, and several combined as one (enrichment).

Shapes: n items of a modality, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from models.aligned import AlignedModel
from models.encoded import Encoded
from models.scoring import Cosine, unit
from stores import Store
from stores.errors import CusaError, ParameterError
from stores.modality import Level
from train.data.classes import class_rows
from train.data.mixture import Mixture
from train.evaluation.embed import SplitEncoded
from train.evaluation.similarities import Similarities, similarities

FINEST: Final[tuple[Level, ...]] = ("caption", "sample", "class")
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedModality:
    """The items of a modality that are there: those of a student's modality, or of several combined."""

    name: str
    """Of several: their names joined by a plus sign."""
    level: Level
    places: Rows
    """(n,) their places among the rows of their level in the split."""
    whole: Encoded
    """All rows of that level; those of absent items mean nothing."""
    owners: Mapping[Level, Rows]
    """(n,) by level, their own and coarser ones: the row that each belongs to; below zero: to none."""

    @cached_property
    def encoded(self) -> Encoded:
        """The n items; only taken out where some are absent, since parts may lie on disk."""
        return self.whole if len(self) == self.whole.size else self.whole.take(torch.from_numpy(self.places))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def members(self) -> set[str]:
        """The student's modalities that it is made of."""
        return set(self.name.split("+"))


class SplitModalities:
    """Every modality of a split, and how alike the items of any two are."""

    def __init__(self, model: AlignedModel, encoded: SplitEncoded, store: Store, split: str) -> None:
        """Leave out the items that are absent."""
        self._model, self._encoded = model, encoded
        self._owners = _owners(store, split)
        inputs = model.interface.inputs
        items = Mixture([store], split, inputs)
        self._present: dict[str, NDArray[np.bool_]] = {}
        for name, given in inputs.items():
            rows = self._owners[given.level][given.level]
            flags = given.present(items, rows)
            self._present[name] = np.ones(len(rows), dtype=np.bool_) if flags is None else flags

    def ranked(self, name: str) -> RankedModality:
        """Return one of the student's modalities, or several joined by a plus sign as one."""
        return self._enriched(name) if "+" in name else self._real(name)

    def _real(self, name: str) -> RankedModality:
        level = self._model.interface.inputs[name].level
        return self._ranked(name, level, self._encoded[name], np.flatnonzero(self._present[name]))

    def _enriched(self, name: str) -> RankedModality:
        """Return Σ z over those of several modalities that a row has (C6), for each row of the finest of their levels.

        Raises:
            ParameterError: the student has no such modalities.
            CusaError: it compares other than by cosine.
        """
        inputs, names = self._model.interface.inputs, name.split("+")
        check_enriched([name], inputs)
        if not isinstance(self._model.scorer, Cosine):
            raise CusaError(f"{name} would add up vectors, and the student compares by more than these.")
        level = next(level for level in FINEST if any(inputs[one].level == level for one in names))
        owners = self._owners[level]
        total: Tensor | None = None
        some = np.zeros(len(owners[level]), dtype=np.bool_)
        for one in names:
            own = inputs[one].level
            places = owners[own] - self._owners[own][own][:1].sum()
            there = owners[own] >= 0
            there[there] = self._present[one][places[there]]
            vectors = unit(self._encoded[one].vector)[torch.from_numpy(np.where(there, places, 0))]
            vectors = vectors * torch.from_numpy(there)[:, None]
            total = vectors if total is None else total + vectors
            some |= there
        places = np.flatnonzero(some)
        if total is None or not len(places):
            raise CusaError(f"No row of the split has any of {name}.")
        return self._ranked(name, level, Encoded(total), places)

    def compared(
        self,
        first: RankedModality,
        second: RankedModality,
        folder: Path,
        enrichment: Literal["unit", "sum"],
    ) -> Similarities:
        """Compare all items of two modalities; enriched ones by cosine, or by the sum of their parts' cosines."""
        one, other = first.encoded, second.encoded
        if enrichment == "sum" and "+" in first.name + second.name:
            # A number more in each side's vectors brings all of that side to one length, and adds to no product: the
            # cosines are then the products, up to a factor.
            one = Encoded(_levelled(unit(one.vector) if "+" not in first.name else one.vector, (0, 1)))
            other = Encoded(_levelled(unit(other.vector) if "+" not in second.name else other.vector, (1, 0)))
        return similarities(self._model.scorer, one, other, self._model.device, folder)

    def _ranked(self, name: str, level: Level, whole: Encoded, places: Rows) -> RankedModality:
        owners = {coarser: rows[places] for coarser, rows in self._owners[level].items()}
        return RankedModality(name=name, level=level, whole=whole, places=places, owners=owners)


def check_enriched(enriched: Sequence[str], modalities: Collection[str]) -> None:
    """Check, before hours of training, that `eval.enriched` combines modalities of the student.

    Raises:
        ParameterError: it does not.
    """
    for name in enriched:
        parts = name.split("+")
        if len(set(parts)) < max(2, len(parts)) or not set(parts) <= set(modalities):
            expected = f"two or more of {', '.join(modalities)}, joined by +"
            raise ParameterError(where="eval.enriched", found=name, expected=expected)


def relevance(first: RankedModality, second: RankedModality, hits: Level) -> sparse.csr_array:
    """Return which items of two modalities belong together, at the level of `hits` or coarser: sparse (n, m).

    That is the caption, where both have one for each; else the sample; the class, where one is of classes.
    """
    by = max(hits, first.level, second.level, key=FINEST.index)
    one, other = first.owners[by], second.owners[by]
    known = np.unique(one[one >= 0])
    sides = []
    for owners in (one, other):
        codes = np.searchsorted(known, owners)
        codes[codes == len(known)] = 0
        rows = np.flatnonzero((owners >= 0) & (known[codes] == owners)) if len(known) else np.empty(0, np.int64)
        sides.append(sparse.csr_array((np.ones(len(rows), bool), (rows, codes[rows])), shape=(len(owners), len(known))))
    matrix = sparse.csr_array(sides[0] @ sides[1].T).astype(bool)
    matrix.sort_indices()
    return matrix


def _owners(store: Store, split: str) -> dict[Level, dict[Level, Rows]]:
    """Return for the rows of each level in a split the rows that they belong to, by their own and coarser levels."""
    samples, captions, classes = (store.rows(split, level) for level in ("sample", "caption", "class"))
    of_samples = class_rows(store)
    owning = store.captions["sample"].slice(captions[0] if len(captions) else 0, len(captions)).to_numpy()
    return {
        "caption": {"caption": captions, "sample": owning, "class": of_samples[owning]},
        "sample": {"sample": samples, "class": of_samples[samples]},
        "class": {"class": classes},
    }


def _levelled(vectors: Tensor, sides: Sequence[int]) -> Tensor:
    """Return (n, D) vectors with two numbers more each, of which one brings all to the length of the longest."""
    lengths = vectors.norm(dim=1, keepdim=True)
    missing = (lengths.max() ** 2 - lengths**2).clamp(min=0).sqrt()
    return torch.cat([vectors, functional.pad(missing, (sides[0], sides[1]))], dim=1)
