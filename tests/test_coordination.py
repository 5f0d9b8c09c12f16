"""PCMC and PCMR against loops over C1 to C5: gaps, classes, captions, weights, tiles, shares of a batch; enrichment."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from test_terms import agree
from torch import Tensor

from models.encoded import Encoded, map_tensors
from models.scoring import Cosine
from train.losses import tiles
from train.losses.comparison import Instances
from train.losses.coordination import PCMC, PCMR
from train.losses.functional import info_nce, pcmc, pcmr
from train.losses.objective import Objective, compare

COUNT, DIM = 9, 5
NAMES = ("image", "text", "speech", "attributes")
GROUPS = torch.tensor([0, 0, 1, 2, 3, 1, 4, 5, 6])
CAPTIONS, CLASSES = torch.arange(COUNT), torch.tensor([0, 0, 1, 1, 2, 1, 2, 3, 3])
WEIGHTS = {("image", "text"): 2.0, ("text", "speech"): 0.5}


def made(names: tuple[str, ...] = NAMES, count: int = COUNT) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(count, DIM, generator=generator, dtype=torch.float64).requires_grad_() for name in names}


def gaps(share: float, names: tuple[str, ...] = NAMES, count: int = COUNT) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(count, generator=generator) >= share for name in names}


def looped(vectors: dict[str, Tensor], present: dict[str, Tensor], groups: dict, weights: dict, kind: str) -> Tensor:
    """C1 to C5, cell by cell; `kind` is a temperature for PCMC, or γ and φ for PCMR."""
    total, heights = sum(vector.sum() for vector in vectors.values()) * 0.0, 0.0
    for p, q in combinations(vectors, 2):
        group, (one, other) = groups[p, q].tolist(), (vectors[p], vectors[q])
        rows = [i for i in range(len(group)) if present[p][i]]
        columns = [j for j in range(len(group)) if present[q][j]]
        cosine = {(i, j): one[i] @ other[j] / one[i].norm() / other[j].norm() for i in rows for j in columns}
        near = [cell for cell in cosine if group[cell[0]] == group[cell[1]]]
        away = [cell for cell in cosine if group[cell[0]] != group[cell[1]]]
        if not near or not away:
            continue
        if isinstance(kind, tuple):
            gamma, far = kind
            value = gamma * sum((1 - cosine[cell]) ** 2 for cell in near) / len(near)
            wrong = [cosine[cell] if far == "zero" else cosine[cell].clamp(min=0) for cell in away]
            value = value + (1 - gamma) * sum(one**2 for one in wrong) / len(away)
        else:
            value = 0.0
            for from_p in (True, False):
                anchors, candidates = (rows, columns) if from_p else (columns, rows)
                losses = []
                for i in anchors:
                    partners = [j for j in candidates if group[j] == group[i]]
                    if not partners:
                        continue
                    scores = {j: cosine[(i, j) if from_p else (j, i)] / kind[p, q] for j in candidates}
                    normaliser = torch.log(sum(torch.exp(score) for score in scores.values()))
                    losses.append(-sum(scores[j] - normaliser for j in partners) / len(partners))
                value = value + 0.5 * sum(losses) / len(losses)
        total = total + weights.get((p, q), 1.0) * value
        heights += weights.get((p, q), 1.0)
    return total / heights if heights else total


def pairs(groups: Tensor, **others: Tensor) -> dict[tuple[str, str], Tensor]:
    """The groups of every pair: by caption between the captions' modalities, by class with a class's."""
    captions = {"text", "speech"}
    return {
        pair: others.get("caption" if set(pair) == captions else "class" if "attributes" in pair else "", groups)
        for pair in combinations(NAMES, 2)
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("by_pair", [False, True], ids=["groups", "by-pair"])
def test_the_losses_are_the_equations(share: float, by_pair: bool) -> None:
    vectors, present = made(), gaps(share)
    groups = pairs(GROUPS, **({"caption": CAPTIONS, "class": CLASSES} if by_pair else {}))
    given, weights = (groups, WEIGHTS) if by_pair else (GROUPS, {})
    taus = {pair: 0.1 + 0.05 * number for number, pair in enumerate(groups)} if by_pair else dict.fromkeys(groups, 0.2)
    wanted = list(vectors.values())
    found = pcmc(vectors, present, given, taus if by_pair else 0.2, weights)
    agree(found, looped(vectors, present, groups, weights, taus), wanted)
    for far in ("zero", "below"):
        found = pcmr(vectors, present, given, gamma=0.3, weights=weights, far=far)
        agree(found, looped(vectors, present, groups, weights, (0.3, far)), wanted)


def test_two_modalities_without_gaps_are_info_nce_and_gaps_are_as_dropped() -> None:
    vectors = made(("image", "text"))
    both = [vectors[name] / vectors[name].norm(dim=1, keepdim=True) for name in vectors]
    agree(pcmc(vectors, {}, GROUPS, 0.07), info_nce(both[0] @ both[1].T, 0.07, GROUPS), list(vectors.values()))
    kept = torch.tensor([True, False, True, True, True, True, False, True, True])
    rest = {name: vector[kept] for name, vector in vectors.items()}
    present = dict.fromkeys(vectors, kept)
    agree(pcmc(vectors, present, GROUPS, 0.07), pcmc(rest, {}, GROUPS[kept], 0.07), list(vectors.values()))
    agree(pcmr(vectors, present, GROUPS), pcmr(rest, {}, GROUPS[kept]), list(vectors.values()))


def test_nothing_to_compare_is_zero_with_a_graph() -> None:
    nowhere, one = torch.zeros(COUNT, dtype=torch.bool), made(count=1)
    vectors, alone = made(), {name: torch.ones(COUNT, dtype=torch.bool) & (name == "image") for name in NAMES}
    for value, wanted in (
        (pcmc(one, {}, torch.zeros(1, dtype=torch.int64), 0.07), one),
        (pcmr(one, {}, torch.zeros(1, dtype=torch.int64)), one),
        (pcmc(vectors, alone, GROUPS, 0.07), vectors),
        (pcmr(vectors, alone, GROUPS), vectors),
    ):
        assert value.item() == 0.0
        assert not any(gradient.any() for gradient in torch.autograd.grad(value, list(wanted.values())))
    absent = {"speech": nowhere}
    rest = {name: vectors[name] for name in NAMES if name != "speech"}
    wanted = list(rest.values())
    agree(pcmc(vectors, absent, GROUPS, 0.07), pcmc(rest, {}, GROUPS, 0.07), wanted)
    agree(pcmr(vectors, absent, GROUPS), pcmr(rest, {}, GROUPS), wanted)


def test_a_collapsed_and_a_random_model_score_a_half() -> None:
    count = 400
    same = {name: torch.ones(count, 64, dtype=torch.float64) for name in NAMES[:2]}
    ids = torch.arange(count)
    assert pcmr(same, {}, ids).item() == pytest.approx(0.5)
    generator = torch.Generator().manual_seed(0)
    random = {name: torch.randn(count, 64, generator=generator, dtype=torch.float64) for name in NAMES[:2]}
    assert pcmr(random, {}, ids).item() == pytest.approx(0.5 * (1 + 2 / 64), abs=0.03)


@pytest.mark.parametrize("height", [None, 2])
def test_terms_give_the_functions_plain_in_tiles_and_in_shares(
    height: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, present = made(), gaps(0.3)
    if height:
        monkeypatch.setattr(tiles, "ELEMENTS", height * COUNT)
    matched_by = {("text", "speech"): "caption", **{(name, "attributes"): "class" for name in NAMES[:3]}}
    rows = Instances(
        encoded={name: Encoded(vector) for name, vector in vectors.items()},
        places=torch.arange(COUNT),
        groups=GROUPS,
        present=present,
        numbers={"caption": CAPTIONS, "class": CLASSES},
        matched_by=matched_by,
    )
    groups = pairs(GROUPS, caption=CAPTIONS, **{"class": CLASSES})
    for term, expected in (
        (PCMC(weights=WEIGHTS), pcmc(vectors, present, groups, math.exp(math.log(0.07)), WEIGHTS)),
        (PCMC(each=NAMES), pcmc(vectors, present, groups, dict.fromkeys(groups, 0.07))),
        (PCMR(gamma=0.3, far="below"), pcmr(vectors, present, groups, 0.3, far="below")),
    ):
        objective = Objective([term]).double()
        for temperature in objective.terms[0].temperatures.values():
            temperature.log.data.fill_(math.log(0.07))
        total, _ = compare(objective, rows, rows, Cosine())
        agree(total, expected, list(vectors.values()))
        thirds = (map_tensors(lambda tensor, at=at: tensor[at : at + 3], rows) for at in (0, 3, 6))
        parts = [compare(objective, some, rows, Cosine())[0] for some in thirds]
        agree(sum(parts) / 3, expected, list(vectors.values()))


def test_what_a_batch_cannot_use_is_told() -> None:
    vectors, term = made(("image", "text")), PCMR()
    for kept in ([1.0] * COUNT, [1.0] + [0.0] * (COUNT - 1)):
        rows = Instances({n: Encoded(v) for n, v in vectors.items()}, torch.arange(COUNT), GROUPS)
        rows = rows._replace(present={name: torch.tensor(kept) > 0 for name in vectors})
        compare(Objective([term]).double(), rows, rows, Cosine())
    assert "PCMR could not use image–text in 50.0% of the batches" in term.remark(0.0, COUNT)
    term.before_epoch(1)
    assert term.remark(0.0, COUNT) == ""
