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
from train.data.classes import class_rows
from train.evaluation.embed import SplitEncoded
from train.evaluation.metrics import many_to_many, median_rank, most_relevant, recalls
from train.evaluation.ranked_modalities import RankedModality, SplitModalities, relevance
from train.evaluation.rankings import Ranks, Rows, first_ranks, nearest, top
from train.evaluation.similarities import Similarities

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
        there = [one for one in map(self._split.ranked, self._names) if len(one)]
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


def zero_shot(
    rows_of: Callable[[Places, Places], Rows], items: RankedModality, classes: RankedModality, unseen: Places
) -> dict[str, float] | None:
    """Classify by retrieval, by the class whose own item is nearest; None where no item is of an unseen class.

    Zero-shot: among the unseen classes. Generalised: among all, by the harmonic mean of the accuracies on seen and
    unseen (Xian et al., arXiv 1707.00600). Accuracies are means over classes, in percent.

    Args:
        rows_of: gives the similarities of some items with some of the classes' own, by their places.
        items: samples or captions.
        classes: a modality of classes.
        unseen: the rows of those that training has not seen.
    """
    truth, rows = items.owners["class"], classes.owners["class"]
    new, candidates = np.isin(truth, unseen) & np.isin(truth, rows), np.flatnonzero(np.isin(rows, unseen))
    old = np.isin(truth, rows) & ~np.isin(truth, unseen)
    if not new.any():
        return None

    def predicted(asked: NDArray[np.bool_], among: Places) -> Places:
        return rows[among][nearest(rows_of(np.flatnonzero(asked), among))]

    everything = np.arange(len(rows))
    narrow, wide = predicted(new, candidates), predicted(new, everything)
    figures = {
        "accuracy": per_class(narrow, truth[new]),
        "plain accuracy": float(100 * (narrow == truth[new]).mean()),
        "chance": 100 / len(candidates),
        "generalised unseen": per_class(wide, truth[new]),
    }
    if old.any():
        figures["generalised seen"] = seen = per_class(predicted(old, everything), truth[old])
        both = seen + figures["generalised unseen"]
        figures["harmonic mean"] = 2 * seen * figures["generalised unseen"] / both if both else 0.0
    return figures


def per_class(predicted: Places, truth: Places) -> float:
    """Return the mean over classes of the share, in percent, of their items (n,) that are predicted right."""
    right = predicted == truth
    return float(np.mean([100 * right[truth == one].mean() for one in np.unique(truth)]))


def unseen_classes(store: Store, split: str) -> Places:
    """Return the classes of a split's samples that no sample of the split "train" is of; none where there is none."""
    if "train" not in store.manifest.splits or split == "train":
        return np.empty(0, dtype=np.int64)
    rows = class_rows(store)
    here, seen = (np.unique(rows[store.rows(name, "sample")]) for name in (split, "train"))
    return np.setdiff1d(here[here >= 0], seen)
