"""What is measured of a student of sets beside its rankings: collapse, the rule of top pairs, idle slots, search.

Shapes: n items of one modality, m of another, K members each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from scipy import sparse

from models.aligned import AlignedModel
from models.encoded import Encoded
from models.scoring import Scorer, SetScorer, TopPairs, unit
from models.set_index import SetIndex
from train.evaluation.embed import SplitEncoded
from train.evaluation.ranked_modalities import RankedModality
from train.evaluation.rankings import first_ranks
from train.evaluation.similarities import Similarities
from train.losses.sets import log_circular_variance

SPREAD: Final = "log circular variance"
COLLAPSED: Final = -5.0
"""Log circular variance of sets whose members are nearly one vector: MaxMatch's paper reports −7.35 of sets that
collapsed, and −1.68 of its own."""
AT: Final = 10
_SAME: Final = 1e-5


def spread_of_sets(model: AlignedModel, encoded: SplitEncoded) -> dict[str, float]:
    """Return the log circular variance of each modality's sets; of single vectors, nothing."""
    if not isinstance(model.scorer, SetScorer):
        return {}
    sets = {name: items.parts for name, items in encoded.items() if items.parts is not None}
    return {f"{SPREAD} {name}": log_circular_variance(s).item() for name, s in sets.items() if s.shape[1] > 1}


def collapse(spread: dict[str, float]) -> str:
    """Say which sets have collapsed; usually nothing."""
    low = {name.removeprefix(SPREAD).strip(): value for name, value in spread.items() if value < COLLAPSED}
    if not low:
        return ""
    said = ", ".join(f"{name} {value:.2f}" for name, value in low.items())
    return (
        f"The members of a set are nearly one vector ({SPREAD}: {said}; spread sets have −3 or more). Raise "
        f"loss.sets.discriminative or loss.sets.divergence, or lower student.sets.members."
    )


def set_figures(
    model: AlignedModel,
    first: RankedModality,
    second: RankedModality,
    found: Similarities,
    relevant: sparse.csr_array,
    ranked: Callable[[Scorer], dict[str, Any]],
) -> dict[str, Any] | None:
    """Measure sets of two modalities, shares in percent; None of a student of no sets.

    Args:
        model: the student.
        first: its first modality's items.
        second: its second's.
        found: how alike they are.
        relevant: (n, m) sparse, what belongs together.
        ranked: gives the retrieval figures by another scorer.
    """
    scorer = model.scorer
    if not isinstance(scorer, SetScorer):
        return None
    pair = {first.name: first.encoded, second.name: second.encoded}
    return {
        **spread_of_sets(model, pair),
        "top pairs": ranked(TopPairs(scorer.activation)),
        "hits by slot": _hits_by_slot(first, second, found, relevant),
        f"search recall@{AT}": {
            first.name: 100 * search_recall(scorer, first.encoded, second.encoded, found.rows()),
            second.name: 100 * search_recall(scorer, second.encoded, first.encoded, found.columns()),
        },
    }


def search_recall(scorer: SetScorer, queries: Encoded, items: Encoded, exact: Any) -> float:
    """Return which share of each query's exact ten best items an index of members finds among ten.

    `exact` are the rows of scores of all pairs. An item as good as the tenth counts as found.
    """
    k = min(AT, items.size)
    scores, _ = SetIndex(items, scorer).search(queries, k)
    tenth = torch.cat([block.topk(k, dim=1).values[:, -1] for block in exact]).numpy()
    return float((scores >= tenth[:, None] - _SAME).sum() / (queries.size * k))


def _hits_by_slot(
    first: RankedModality, second: RankedModality, found: Similarities, relevant: sparse.csr_array
) -> dict[str, dict[str, float]]:
    """Return each slot's share of the hits of `second` ranking `first`, in percent, by their nearest members.

    A slot without a share is dead: no hit is owed to it.
    """
    owners = sparse.csr_array(relevant.T)
    hits = np.flatnonzero(first_ranks(found.columns(), owners) == 0)
    own = owners.indices[owners.indptr[hits]]
    one, other = first.encoded.parts, second.encoded.parts
    if one is None or other is None or not len(hits):
        return {}
    cosines = unit(one[torch.from_numpy(own)]) @ unit(other[torch.from_numpy(hits)]).mT
    best, count = cosines.flatten(1).argmax(dim=1), one.shape[1]
    slots = {first.name: best // count, second.name: best % count}
    shares = {name: 100 * torch.bincount(where, minlength=count) / len(hits) for name, where in slots.items()}
    return {name: {f"slot {k}": share.item() for k, share in enumerate(one, 1)} for name, one in shares.items()}
