"""Classification by retrieval: the class whose own item is nearest, for classes that training has not seen.

Zero-shot: among the unseen classes. Generalised: among all, by the harmonic mean of the accuracies on seen and unseen
(Xian et al., arXiv 1707.00600). Accuracies are means over classes, in percent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stores import Store
from train.data.classes import class_rows
from train.evaluation.ranked_modalities import RankedModality
from train.evaluation.rankings import Rows, nearest

Classes = NDArray[np.int64]


def zero_shot(
    rows_of: Callable[[Classes, Classes], Rows], items: RankedModality, classes: RankedModality, unseen: Classes
) -> dict[str, float] | None:
    """Return accuracies of items whose class is known; None where none of them is of an unseen class.

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

    def predicted(asked: NDArray[np.bool_], among: Classes) -> Classes:
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


def per_class(predicted: Classes, truth: Classes) -> float:
    """Return the mean over classes of the share, in percent, of their items (n,) that are predicted right."""
    right = predicted == truth
    return float(np.mean([100 * right[truth == one].mean() for one in np.unique(truth)]))


def unseen_classes(store: Store, split: str) -> Classes:
    """Return the classes of a split's samples that no sample of the split "train" is of; none where there is none."""
    if "train" not in store.manifest.splits or split == "train":
        return np.empty(0, dtype=np.int64)
    rows = class_rows(store)
    here, seen = (np.unique(rows[store.rows(name, "sample")]) for name in (split, "train"))
    return np.setdiff1d(here[here >= 0], seen)
