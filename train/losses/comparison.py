"""What losses are computed on: the items of some rows, each compared with those of all columns.

In one process rows and columns are the whole batch; where processes share a batch, each has its own rows. Shapes:
n rows in general, M rows and N columns in a comparison, D embedding, Dt of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from models.encoded import Encoded, map_tensors
from models.inputs import Input
from models.scoring import unit
from stores.modality import Level
from train.losses.functional import Mix, mixed_targets, soft_targets
from train.losses.presence import Cells, anchor_shares, candidates, count_cells, present_cells, shares

T = TypeVar("T")
Scores = Mapping[tuple[str, str], Tensor]
"""By modalities of rows and columns: (M, N)."""
Match = Callable[[Encoded, Encoded, Tensor, Tensor], Tensor]
"""Items of two modalities, and places (P,) among either: to the logits of no match and of match, (P, 2)."""


TRUSTED: Final = "trusted"
"""The note, bool, of rows whose items are held to belong together."""


class Instances(NamedTuple):
    """n rows of a batch, each with an item of every modality: all tensors are cut, gathered and joined by row."""

    encoded: dict[str, Encoded]
    places: Tensor
    """(n,) int64, where a row stands in the whole batch: its own column."""
    groups: Tensor
    """(n,) int64; the items of one group, those of one image, belong together."""
    teachers: Mapping[str, Tensor] = {}
    """(n, Dt) features by modality, where a loss has soft labels."""
    present: Mapping[str, Tensor] = {}
    """(n,) bool by modality: which rows have an item; of modalities that are not named, all do."""
    numbers: Mapping[str, Tensor] = {}
    """(n,) int64 rows of the store by level, for what is known of single samples or captions."""
    notes: Mapping[str, Tensor] = {}
    """(n, …) what terms noted of the rows before the loss (`Term.prepare`)."""
    certain: Tensor | None = None
    """(n,) of `exact_dtype`, how much a row's pair weighs in terms that learn from pairs; None: all alike."""
    matched_by: Mapping[tuple[str, str], str] = {}
    """By which of the `numbers` items of two modalities match; those of pairs that are not named, by `groups`."""

    def normalised(self) -> Instances:
        """Return the rows with all vectors at length one."""
        encoded = {
            modality: items._replace(vector=unit(items.vector), uni=None if items.uni is None else unit(items.uni))
            for modality, items in self.encoded.items()
        }
        return self._replace(encoded=encoded, teachers=map_tensors(unit, self.teachers))

    def having(self, modalities: tuple[str, ...]) -> Tensor | None:
        """Return which rows have an item of every one of these modalities, (n,) bool; None: all do."""
        flags = [self.present[modality] for modality in modalities if modality in self.present]
        return torch.stack(flags).all(dim=0) if flags else None

    def matching(self, first: str, second: str) -> Tensor:
        """Return the numbers by which items of two modalities match: (n,) int64."""
        by = self.matched_by.get((first, second), self.matched_by.get((second, first)))
        return self.groups if by is None else self.numbers[by]


def matched_by(inputs: Mapping[str, Input], match: Level) -> dict[tuple[str, str], str]:
    """Return `Instances.matched_by` of a student's modalities: the level at which items of each two match.

    A class's own item matches all that is of the class: otherwise one vector would be its own negative. Of other
    modalities `match` says it: caption, where both have one for each caption; sample, which is by group; or class.
    """
    found: dict[tuple[str, str], str] = {}
    for first, second in combinations(inputs, 2):
        levels = inputs[first].level, inputs[second].level
        if "class" in levels or match == "class":
            found[first, second] = "class"
        elif levels == ("caption", "caption") and match == "caption":
            found[first, second] = "caption"
    return found


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """How teachers' similarities become targets (CUSA, eq. 5)."""

    tau: float
    top_k: int | None = None
    mix: Mix = "each"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows' items compared with the columns'; whatever is computed of that is computed once.

    `rows` and `columns` are normalised; `given` are scores of a scorer that is not the cosine.
    """

    rows: Instances
    columns: Instances
    given: Scores | None = None
    match: Match | None = None
    """What tells pairs apart by both items at once, where a term needs it."""
    _made: dict[Hashable, object] = field(default_factory=dict)

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every two modalities, once."""
        return combinations(self.rows.encoded, 2)

    def scores(self, first: str, second: str) -> Tensor:
        """Return how alike the rows' items of `first` and the columns' of `second` are: (M, N)."""
        if self.given is not None:
            return self.given[first, second]

        def cosines() -> Tensor:
            if self.rows is self.columns and ("scores", second, first) in self._made:
                return self.scores(second, first).T
            return self.rows.encoded[first].vector @ self.columns.encoded[second].vector.T

        return self._once(("scores", first, second), cosines)

    def among(self, modality: str) -> Tensor:
        """Return the cosines of the rows' items with the columns' of the same modality, by the uni-modal heads."""
        return self.rows.encoded[modality].unimodal @ self.columns.encoded[modality].unimodal.T

    @property
    def uniform(self) -> Comparison:
        """The same with all pairs weighing alike, for terms that do not learn from pairs."""
        if self.columns.certain is None:
            return self
        rows, columns = self.rows._replace(certain=None), self.columns._replace(certain=None)
        return Comparison(rows, rows if self.rows is self.columns else columns, self.given, self.match)

    @property
    def trusting(self) -> Comparison:
        """The same of those rows alone whose items are trusted to belong together; all are, if none says otherwise."""
        if TRUSTED not in self.columns.notes:
            return self
        rows, columns = _trusted(self.rows), _trusted(self.columns)
        return Comparison(rows, rows if self.rows is self.columns else columns, self.given, self.match)

    def groups(self, first: str, second: str) -> tuple[Tensor, Tensor]:
        """Return the numbers by which items of two modalities match, of the rows and of the columns: (M,), (N,)."""
        return self.rows.matching(first, second), self.columns.matching(first, second)

    def same(self, first: str, second: str) -> Tensor:
        """Which columns' items match a row's: (M, N) bool."""
        rows, columns = self.groups(first, second)
        return self._once(("same", id(rows)), lambda: rows[:, None] == columns[None, :])

    def cells(self, first: str, second: str) -> Cells:
        """Return how many cells of the whole batch hold two items that match, and two that do not."""

        def count() -> Cells:
            groups, having = self.columns.matching(first, second), self.columns.having
            return count_cells(groups, groups, having((first,)), having((second,)))

        return self._once(("cells", first, second), count)

    def present(self, first: str, second: str) -> Tensor | None:
        """Return which cells have both items, as (M, N) bool or what broadcasts to it; None: all."""
        return present_cells(self.rows.having((first,)), self.columns.having((second,)))

    def labels(self, modality: str, soft: SoftLabels, among: tuple[str, ...]) -> Tensor:
        """Return the soft labels of a modality's items among the columns that have all of `among`: (M, N)."""
        if modality not in self.rows.teachers or modality not in self.columns.teachers:
            raise ValueError(f"Soft labels need the teacher's features of {modality}, of rows and columns.")
        limited = among if self.columns.having(among) is not None else ()
        if soft.mix == "each":
            return self._once(
                ("labels", modality, soft, limited),
                lambda: soft_targets(self._teacher(modality), soft.tau, soft.top_k, self.allowed(*among)),
            )
        both = self._once(
            ("labels", soft, limited),
            lambda: mixed_targets(
                self._teacher(among[0]), self._teacher(among[1]), soft.tau, soft.mix, soft.top_k, self.allowed(*among)
            ),
        )
        return both[among.index(modality)]

    def allowed(self, *modalities: str) -> Tensor | None:
        """Return which columns have all these modalities, (N,) bool; None: all. Where none has, all are let through."""
        return candidates(self.columns.having(modalities))

    def weights(self, *modalities: str) -> Tensor | None:
        """Return the shares of the rows that have all these modalities in a mean over them, (M,); None: equal ones."""
        sides = self.rows, self.columns
        if self.columns.having(modalities) is None and self.columns.certain is None:
            return None
        having, all_having = (_flags(side, modalities) for side in sides)
        return shares(having, all_having, (self.rows.certain, self.columns.certain))

    def anchors(self, first: str, second: str) -> Tensor | None:
        """Return the shares of the rows whose item of `first` has a match of `second` in the batch, (M,); None: equal.

        A row without the one is no anchor; a row without the other still is, where its group has one.
        """
        if self.columns.having((first, second)) is None and self.columns.certain is None:
            return None
        has_first, has_second = (
            (self.rows.having((first,)), self.columns.having((first,))),
            self.columns.having((second,)),
        )
        certain = self.rows.certain, self.columns.certain
        return anchor_shares(self.groups(first, second), has_first, has_second, certain)

    def _teacher(self, modality: str) -> Tensor:
        return self._once(
            ("teacher", modality), lambda: self.rows.teachers[modality] @ self.columns.teachers[modality].T
        )

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])


def _flags(side: Instances, modalities: tuple[str, ...]) -> Tensor:
    having = side.having(modalities)
    return torch.ones_like(side.groups, dtype=torch.bool) if having is None else having


def _trusted(side: Instances) -> Instances:
    trusted = side.notes[TRUSTED]
    return side._replace(present={modality: side.present.get(modality, True) & trusted for modality in side.encoded})
