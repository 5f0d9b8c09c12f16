"""Terms against loops: the hinge, absent rows of three modalities, several processes in float64, terms of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch import Tensor

from models.encoded import Encoded, map_tensors
from models.scoring import Cosine
from stores import ParameterError
from stores.parameters import Hinge as HingeSettings
from stores.parameters import Loss
from train.losses import tiles
from train.losses.comparison import Comparison, Instances
from train.losses.functional import cosine_similarity, csa_loss, info_nce, soft_alignment, soft_targets
from train.losses.objective import Objective, compare, described, make_objective
from train.losses.terms import Hinge, InfoNCE, Term

COUNT, DIM = 20, 6
GROUPS = torch.tensor([0, 0, 1, 2, 3, 1, 4, 0, 5, 6, 7, 8, 9, 9, 10, 11, 12, 13, 13, 14])
MODALITIES = ("image", "text", "speech")


def vectors(seed: int, count: int = COUNT, dim: int = DIM) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def instances(modalities: tuple[str, ...] = MODALITIES, present: dict[str, Tensor] | None = None) -> Instances:
    """Rows of which some items are absent; all vectors want gradients."""
    base = vectors(0)
    encoded = {
        name: Encoded(*((base + vectors(10 * k + way)).requires_grad_() for way in (1, 2)))
        for k, name in enumerate(modalities)
    }
    teachers = {name: vectors(100 + k, dim=4) for k, name in enumerate(modalities)}
    return Instances(encoded, torch.arange(COUNT), GROUPS, teachers, present or {})


def absent() -> dict[str, Tensor]:
    """30 % of the rows of each modality are absent, of speech all but a few."""
    generator = torch.Generator().manual_seed(7)
    flags = {name: torch.rand(COUNT, generator=generator) > 0.3 for name in MODALITIES}
    assert all(0 < int(some.sum()) < COUNT for some in flags.values())
    return flags


def leaves(rows: Instances) -> list[Tensor]:
    return [tensor for items in rows.encoded.values() for tensor in (items.vector, items.uni) if tensor is not None]


def agree(found: Tensor, expected: Tensor, wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    """The same value and gradients, not all zero."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    ours = torch.autograd.grad(found, wanted, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, wanted, allow_unused=True, retain_graph=True)
    largest = max(float(gradient.abs().max()) for gradient in theirs if gradient is not None)
    assert largest > 1e-4
    for one, other, leaf in zip(ours, theirs, wanted, strict=True):
        one, other = (torch.zeros_like(leaf) if gradient is None else gradient for gradient in (one, other))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest)


def dropped(rows: Instances, terms: Objective) -> Tensor:
    """The objective of three modalities, by dropping from each comparison the rows that lack an item."""
    tau = {name: float(value) for name, value in terms.temperatures().items()}
    total: Any = 0.0
    for term in terms.terms:
        losses = []
        pairs = [(a, b) for k, a in enumerate(MODALITIES) for b in MODALITIES[k + 1 :]]
        for a, b in pairs if term.name != "USA" else []:
            both = rows.present[a] & rows.present[b]
            one, other = (rows.encoded[name].vector for name in (a, b))
            if term.name == "InfoNCE":
                ways = []
                for (x, p), (y, q) in (((one, a), (other, b)), ((other, b), (one, a))):
                    kept = rows.present[q]
                    anchors = rows.present[p] & torch.isin(GROUPS, GROUPS[kept])
                    same = (GROUPS[anchors][:, None] == GROUPS[kept][None, :]).double()
                    targets = same / same.sum(dim=1, keepdim=True)
                    logs = (cosine_similarity(x[anchors], y[kept]) / tau["InfoNCE"]).log_softmax(dim=1)
                    ways.append(-(targets * logs).sum(dim=1).mean())
                losses.append(sum(ways) / 2)
            elif term.name == "CSA":
                targets = [
                    soft_targets(cosine_similarity(rows.teachers[name][both], rows.teachers[name][both]), 0.1)
                    for name in (a, b)
                ]
                losses.append(csa_loss(cosine_similarity(one[both], other[both]), *targets, tau["CSA"]))
            else:
                scores = cosine_similarity(one, other)
                value: Any = 0.0
                for matrix, q in ((scores, b), (scores.T, a)):
                    for i in torch.nonzero(both)[:, 0].tolist():
                        excess = [
                            (0.2 + matrix[i, j] - matrix[i, i]).clamp(min=0)
                            for j in range(COUNT)
                            if rows.present[q][j] and GROUPS[i] != GROUPS[j]
                        ]
                        value = value + torch.stack(excess).max() / int(both.sum())
                losses.append(value * COUNT)
        for name in MODALITIES if term.name == "USA" else ():
            here, kept = rows.encoded[name].unimodal[rows.present[name]], rows.teachers[name][rows.present[name]]
            targets_of = soft_targets(cosine_similarity(kept, kept), 0.1)
            losses.append(soft_alignment(cosine_similarity(here, here), targets_of, tau[f"USA {name}"]))
        total = total + term.weight * sum(losses) / len(losses)
    return total


def three(loss: Loss) -> Objective:
    return make_objective(loss, taught=MODALITIES).double()


@pytest.mark.parametrize("loss", [Loss(), Loss(original="hinge")], ids=["infonce", "hinge"])
@pytest.mark.parametrize("height", [None, 3])
def test_absent_rows_are_as_if_dropped(loss: Loss, height: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, objective = instances(present=absent()), three(loss)
    if height:
        monkeypatch.setattr(tiles, "ELEMENTS", height * COUNT)
    total, parts = compare(objective, rows, rows, Cosine())
    assert len(parts) == 3
    expected = dropped(rows, objective)
    agree(total, expected, leaves(rows))
    halves = (map_tensors(lambda tensor, run=run: tensor[run], rows) for run in (slice(0, 10), slice(10, 20)))
    shares = [compare(objective, half, rows, Cosine())[0] for half in halves]
    agree(sum(shares) / 2, expected, leaves(rows))


def test_a_modality_that_no_row_has_is_left_out() -> None:
    here, nowhere = torch.ones(COUNT, dtype=torch.bool), torch.zeros(COUNT, dtype=torch.bool)
    none = {"image": here, "text": here, "speech": nowhere}
    rows, objective = instances(present=none), Objective([InfoNCE()]).double()
    pair = instances(("image", "text"))
    pair = pair._replace(encoded={name: rows.encoded[name] for name in ("image", "text")})
    agree(compare(objective, rows, rows, Cosine())[0], compare(objective, pair, pair, Cosine())[0], leaves(pair))
    for only in MODALITIES[:1], ():
        lonely = rows._replace(present={name: torch.full((COUNT,), name in only) for name in MODALITIES})
        total, _ = compare(objective, lonely, lonely, Cosine())
        assert total.item() == 0.0
        gradients = torch.autograd.grad(total, [items.vector for items in rows.encoded.values()])
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("negatives", ["hardest", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_hinge_is_the_equation(negatives: Any, reduction: Any) -> None:
    """SGRAF, eq. 13, but that pairs of one image are no negatives of each other."""
    rows = instances(("image", "text"))
    settings = HingeSettings(margin=0.3, negatives=negatives, reduction=reduction)
    total, parts = compare(three(Loss(alpha=0, beta=0, original="hinge", hinge=settings)), rows, rows, Cosine())
    assert list(parts) == ["Hinge"]
    scores = cosine_similarity(*(rows.encoded[name].vector for name in ("image", "text")))
    expected: Any = 0.0
    for matrix in (scores, scores.T):
        for i in range(COUNT):
            excess = [(0.3 + matrix[i, j] - matrix[i, i]).clamp(min=0) for j in range(COUNT) if GROUPS[i] != GROUPS[j]]
            expected = expected + (torch.stack(excess).max() if negatives == "hardest" else torch.stack(excess).sum())
    agree(total, expected / COUNT if reduction == "mean" else expected, [i.vector for i in rows.encoded.values()])


def test_the_hinge_warms_up_and_tells_its_plateau() -> None:
    rows, hinge = instances(("image", "text")), Hinge(warm_up=2)
    objective = Objective([hinge]).double()

    def value(epoch: int) -> float:
        objective.before_epoch(epoch)
        return compare(objective, rows, rows, Cosine())[0].item()

    assert value(0) == value(1) > value(2) == value(5)
    plateau = 2 * 0.2 * COUNT
    assert "stands at 8, its plateau" in objective.remarks({"Hinge": plateau}, COUNT)[0]
    assert "loss.hinge.warm_up=3" in objective.remarks({"Hinge": plateau}, COUNT)[0]
    assert objective.remarks({"Hinge": 0.9 * plateau}, COUNT) == []
    objective.before_epoch(1)
    assert objective.remarks({"Hinge": plateau}, COUNT) == [], "all violations have no such plateau"


class Spread(Term):
    """How near a batch's images are to each other; with a learned scale, and state of its own."""

    def __init__(self) -> None:
        super().__init__("Spread")
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("epochs", torch.zeros(()))

    def before_epoch(self, epoch: int) -> None:
        self.epochs.fill_(epoch)

    def forward(self, compared: Comparison) -> Tensor:
        return self.scale * compared.among("image").mean()


def called_total() -> Spread:
    term = Spread()
    term.name = "total"
    return term


def test_a_term_of_ones_own_is_added_by_name() -> None:
    loss = Loss(beta=0, extra={"test_terms:Spread": 0.25})
    objective = make_objective(loss).double()
    rows = instances(("image", "text"))
    total, parts = compare(objective, rows, rows, Cosine())
    torch.testing.assert_close(total, parts["InfoNCE"] + parts["CSA"] + 0.25 * parts["Spread"])
    assert described(loss) == "InfoNCE + 1 · CSA + 0.25 · Spread, soft labels at τ_P = 0.1"
    objective.before_epoch(3)
    assert float(objective.state_dict()["by_name.Spread.epochs"]) == 3, "its state goes with the checkpoint"
    assert "by_name.Spread.scale" in dict(objective.named_parameters())
    alone = make_objective(Loss(alpha=0, beta=0, original="test_terms:Spread"))
    assert [term.name for term in alone.terms] == ["Spread"]
    for wrong, message in (
        (Loss(extra={"test_terms:vectors": 1.0}), "takes|missing|returned|argument"),
        (Loss(extra={"train.losses.terms:InfoNCE": 1.0}), "Two terms of the loss are called InfoNCE"),
        (Loss(original="test_terms:called_total"), "called total, a name that the curves need"),
        (Loss(original="nonsense"), "nonsense"),
    ):
        with pytest.raises((ParameterError, TypeError), match=message):
            make_objective(wrong)


EVERY = Loss(extra={"train.losses.coordination:PCMC": 0.5, "train.losses.coordination:PCMR": 0.7})
TOGETHER = """
import os, sys, torch
from accelerate import Accelerator
import test_terms as t
from models.scoring import Cosine
from models.encoded import map_tensors
from train.fit.processes import Processes
from train.losses.objective import compare
processes = Processes(Accelerator(cpu=True))
whole, objective = t.some(sys.argv[1]), t.three(t.EVERY)
share = t.COUNT // processes.count
mine = map_tensors(lambda tensor: tensor[processes.rank * share : (processes.rank + 1) * share], whole)
total, _ = compare(objective, mine, processes.columns(mine), Cosine())
gradients = torch.autograd.grad(total, [*t.leaves(whole), *objective.parameters()])
found = [processes.mean(total.detach()), *(processes.mean(gradient) for gradient in gradients)]
if processes.is_main:
    torch.save(found, sys.argv[2])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def some(kind: str) -> Instances:
    """All rows; or some absent; or these with pairs that weigh more or less."""
    rows = instances(present=None if kind == "whole" else absent())
    return rows._replace(certain=torch.linspace(0, 1, COUNT).double()) if kind == "weighed" else rows


@pytest.mark.parametrize("kind", ["whole", "absent", "weighed"])
def test_two_processes_give_what_one_gives(tmp_path: Path, kind: str) -> None:
    """In float64, to the last few bits."""
    rows, objective = some(kind), three(EVERY)
    total, _ = compare(objective, rows, rows, Cosine())
    expected = [total.detach(), *torch.autograd.grad(total, [*leaves(rows), *objective.parameters()])]
    (tmp_path / "together.py").write_text(TOGETHER)
    running = forked.start(tmp_path / "together.py", kind, str(tmp_path / "found.pt"), processes=2)
    _, errors = running.communicate()
    assert running.returncode == 0, errors
    found = torch.load(tmp_path / "found.pt")
    assert all(gradient.abs().max() > 1e-6 for gradient in expected[1:])
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))


def test_info_nce_of_two_modalities_is_the_pure_function() -> None:
    rows = instances(("image", "text"))
    scores = cosine_similarity(*(items.vector for items in rows.encoded.values()))
    total, _ = compare(Objective([InfoNCE()]).double(), rows, rows, Cosine())
    check: Callable[..., None] = torch.testing.assert_close
    check(total.item(), info_nce(scores, 0.05, GROUPS).item(), rtol=1e-7, atol=0)
