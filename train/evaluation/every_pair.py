"""Retrieval between every two modalities of a student, enriched ones among them; and zero-shot accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.aligned import AlignedModel
from stores import Store
from stores.parameters import Evaluation
from train.evaluation.embed import SplitEncoded
from train.evaluation.metrics import many_to_many, median_rank, most_relevant, recalls
from train.evaluation.ranked_modalities import RankedModality, SplitModalities, relevance
from train.evaluation.rankings import Ranks, Rows, first_ranks, top
from train.evaluation.similarities import Similarities
from train.evaluation.zero_shot import unseen_classes, zero_shot

Figures = dict[str, dict[str, float]]
Places = NDArray[np.int64]


class ComparedPair(NamedTuple):
    """Two modalities, and how alike their items are."""

    first: RankedModality
    second: RankedModality
    found: Similarities


class EveryPair:
    """A split, by every two modalities that share none and of which it has items."""

    def __init__(
        self,
        model: AlignedModel,
        encoded: SplitEncoded,
        store: Store,
        split: str,
        settings: Evaluation,
        main: tuple[tuple[str, str], Callable[[], Similarities]],
        folder: Path,
    ) -> None:
        """Take `main`, two modalities all items of which are compared already; scorings go on in `folder`."""
        self._split, self._store, self._where = SplitModalities(model, encoded, store, split), store, split
        self._names = [*model.interface.inputs, *settings.enriched]
        self._settings, self._main, self._folder = settings, main, folder

    def retrieval(self) -> Figures:
        """Return R@1, R@5, R@10 and the median rank both ways; mAP@R and R-Precision too where a hit is by class."""
        figures: Figures = {}
        for first, second, found in self._compared:
            own = relevance(first, second, self._settings.hits)
            if not own.nnz:
                continue
            by_class = "class" in (self._settings.hits, first.level, second.level)
            ways = (found.rows, own, first, second), (found.columns, sparse.csr_array(own.T), second, first)
            for (rows, matrix, one, other), ranked in zip(ways, both_ways(found, own), strict=True):
                several = by_relevance(rows, matrix) if by_class else {}
                figures[f"{one.name}_to_{other.name}"] = (
                    several | recalls(ranked) | {"median rank": median_rank(ranked)}
                )
        return figures

    def zero_shot(self) -> Figures | None:
        """Return accuracies for classes that training has not seen; None where there are none."""
        unseen, figures = unseen_classes(self._store, self._where), {}
        if not len(unseen):
            return None
        for first, second, found in self._compared:
            if (first.level == "class") == (second.level == "class"):
                continue
            items, classes = (second, first) if first.level == "class" else (first, second)

            def rows(asked: Places, among: Places, found: Similarities = found, turned: bool = items is second) -> Rows:
                return found.part(among, asked).columns() if turned else found.part(asked, among).rows()

            if one := zero_shot(rows, items, classes, unseen):
                figures[f"{items.name}_to_{classes.name}"] = one
        return figures or None

    @cached_property
    def _compared(self) -> list[ComparedPair]:
        return list(self._pairs())

    def _pairs(self) -> Iterator[ComparedPair]:
        there = [one for one in map(self._split.ranked, self._names) if one.encoded.size]
        crossed, main = self._main
        for first, second in combinations(there, 2):
            if first.members & second.members:
                continue
            if (first.name, second.name) == crossed:
                yield ComparedPair(first, second, main().part(first.places, second.places))
            else:
                found = self._split.compared(first, second, self._folder, self._settings.enrichment)
                yield ComparedPair(first, second, found)


def both_ways(found: Similarities, own: sparse.csr_array) -> tuple[Ranks, Ranks]:
    """Return the best rank of each item's partners, both ways, of those items that have one in `own`: (q,), (r,)."""
    back = sparse.csr_array(own.T)
    rows, columns = asked(own), asked(back)
    if (len(rows), len(columns)) == own.shape:
        return found.ranks(own)
    first = first_ranks(found.rows(rows), sparse.csr_array(own[rows]))
    return first, first_ranks(found.columns(columns), sparse.csr_array(back[columns]))


def by_relevance(rows: Callable[[Places], Rows], relevant: sparse.csr_array) -> dict[str, float]:
    """Return mAP@R, R-Precision and R@1 of those queries that have a partner; `rows` gives those at some places."""
    queries = asked(relevant)
    some = sparse.csr_array(relevant[queries])
    return many_to_many(top(rows(queries), most_relevant(some)), some)


def asked(matrix: sparse.csr_array) -> Places:
    """Return the rows that have a partner."""
    return np.flatnonzero(np.diff(matrix.indptr))
