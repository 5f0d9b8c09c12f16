"""Wrong pairs: the mixture's split, the terms against loops, in tiles, and a training that resumes with its split."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_scenes
from refusals import refused
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from test_terms import COUNT, GROUPS, agree, instances
from torch.utils._python_dispatch import TorchDispatchMode

from models.checkpoint import read_record
from models.encoded import map_tensors, tensors_of
from models.scoring import Cosine, cosine_similarity
from pipeline.extract import extract
from stores import ParameterError, Store, StoreError, TrainParameters, hardware
from stores.clean import read_clean, write_clean
from stores.clean_mixture import clean_probabilities
from stores.parameters import Loss, Noise, Rematching, Student, Train
from train.data.batches import TrainingData
from train.data.pairing import Pairing
from train.fit import trainer
from train.losses import tiles
from train.losses.comparison import Comparison
from train.losses.functional import symmetric_divergence
from train.losses.objective import Objective, compare, make_objective
from train.losses.rematching import Rematched
from train.losses.terms import TrainingPairs
from train.losses.transport import partial_transport
from train.run import run

SETTINGS = Rematching(warm_up=1, mass=0.3, reg=0.2, tau=0.5)
CLEAN = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)


@pytest.mark.parametrize("mixture", ["beta", "gaussian"])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_lower_component_is_clean(mixture: Any, share: float) -> None:
    random = np.random.default_rng(0)
    wrong = random.random(20_000) < share
    losses = np.where(wrong, random.beta(6, 3, len(wrong)), random.beta(2, 9, len(wrong)))
    clean = clean_probabilities(losses * 7 + 3, mixture)
    assert roc_auc_score(wrong, -clean) > 0.95
    assert ((clean <= 0.5) == wrong).mean() > 0.85
    assert clean_probabilities(np.full(9, 2.0), mixture).tolist() == [1.0] * 9
    with pytest.raises(ValueError, match="1 of 20000 losses are not finite"):
        clean_probabilities(np.where(np.arange(len(losses)) == 7, np.nan, losses), mixture)


@pytest.mark.parametrize("mixture", ["beta", "gaussian"])
def test_the_least_losses_are_clean_where_the_others_spread_wider(mixture: Any) -> None:
    """The wider component reaches below the narrow one, whose pairs would all be as doubtful as the least loss."""
    random = np.random.default_rng(0)
    losses = np.concatenate([random.normal(0.45, 0.02, 700), random.normal(0.55, 0.2, 300)])
    clean = clean_probabilities(losses, mixture)
    assert clean[losses.argmin()] == clean.max() > 0.5
    assert (clean[:700] > 0.5).mean() > 0.8
    assert (np.diff(clean[np.argsort(losses)]) <= 0).all()


def split(loss: Loss, epoch: int) -> Objective:
    """An objective whose pairs are split as CLEAN says, in an epoch."""
    objective = make_objective(loss).double()
    objective.begin(TrainingPairs(100, COUNT))
    objective.before_epoch(epoch)
    if epoch >= SETTINGS.warm_up:
        rematched = objective.by_name["rematched"]
        assert isinstance(rematched, Rematched)
        rematched.clean.copy_(CLEAN)
    return objective


def rows() -> Any:
    return instances(("image", "text"))._replace(numbers={"caption": 100 + torch.arange(COUNT)})


def test_clean_pairs_keep_their_loss_and_the_others_are_matched_anew() -> None:
    """CSA as InfoNCE learns from clean pairs alone, USA from all; the transport is that of the others alone."""
    whole = rows()
    loss = Loss(recipe="l2rm", alpha=0.3, beta=0.7, rematching=replace(SETTINGS, weight=0.4))
    total, parts = compare(split(loss, 1), whole, whole, Cosine())
    clean = whole._replace(present=dict.fromkeys(whole.encoded, CLEAN))
    kept = compare(make_objective(replace(loss, recipe="cusa")).double(), clean, clean, Cosine())[1]
    plain = compare(make_objective(replace(loss, recipe="cusa")).double(), whole, whole, Cosine())[1]
    torch.testing.assert_close([parts["InfoNCE"], parts["CSA"]], [kept["InfoNCE"], kept["CSA"]])
    torch.testing.assert_close(parts["USA"], plain["USA"])
    others = torch.nonzero(~CLEAN)[:, 0]
    scores = cosine_similarity(*(items.vector[others] for items in whole.encoded.values()))
    allowed = GROUPS[others][:, None] != GROUPS[others][None, :]
    plan = partial_transport(1 - scores.detach(), SETTINGS.mass, SETTINGS.reg, allowed).clamp(min=1e-10)
    both = plan / plan.sum(dim=1, keepdim=True), plan.T / plan.T.sum(dim=1, keepdim=True)
    ways = zip((scores, scores.T), both, strict=True)
    expected = sum(symmetric_divergence(way, targets, SETTINGS.tau) for way, targets in ways) / 2
    share = len(others) / COUNT
    rest = kept["InfoNCE"] + 0.3 * kept["CSA"] + 0.7 * plain["USA"]
    leaves = [items.vector for items in whole.encoded.values()]
    torch.testing.assert_close(total.detach(), (rest + 0.4 * share * expected).detach(), rtol=1e-8, atol=0)
    alone = make_objective(replace(loss, alpha=0.0, beta=0.0)).by_name["rematched"]
    assert isinstance(alone, Rematched)
    alone.begin(TrainingPairs(100, COUNT))
    alone.clean.copy_(CLEAN)
    alone.before_epoch(1)
    agree(compare(Objective([alone]), whole, whole, Cosine())[0] / 0.4, expected * share, leaves, 1e-7)


def test_tiles_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for elements in (2**22, 3 * COUNT):
        monkeypatch.setattr(tiles, "ELEMENTS", elements)
        whole = rows()
        total, _ = compare(split(Loss(recipe="l2rm", rematching=SETTINGS), 1), whole, whole, Cosine())
        found.append([total.detach(), *torch.autograd.grad(total, [i.vector for i in whole.encoded.values()])])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epoch", [0, 1], ids=["warm_up", "split"])
def test_shares_of_a_batch_give_what_the_whole_gives(epoch: int) -> None:
    """As processes have them: each compares its rows with all columns; every process solves the same transport."""
    whole, objective = rows(), split(Loss(recipe="l2rm", rematching=SETTINGS), epoch)
    shares = [map_tensors(lambda tensor, run=run: tensor[run], whole) for run in (slice(0, 8), slice(8, COUNT))]
    parts = [compare(objective, share, whole, Cosine())[0] * len(share.groups) for share in shares]
    leaves = [items.vector for items in whole.encoded.values()]
    agree(sum(parts) / COUNT, compare(objective, whole, whole, Cosine())[0], leaves, 1e-8)


def test_while_warming_up_all_pairs_have_one_loss() -> None:
    whole = rows()
    total, parts = compare(split(Loss(recipe="l2rm", rematching=SETTINGS), 0), whole, whole, Cosine())
    assert [float(parts[name]) for name in ("InfoNCE", "CSA", "rematched")] == [0, 0, 0]
    torch.testing.assert_close(total, parts["warm-up"] + 1.5 * parts["USA"])
    parts = compare(split(Loss(recipe="l2rm", rematching=SETTINGS), 1), whole, whole, Cosine())[1]
    assert float(parts["warm-up"]) == 0


@pytest.mark.parametrize("epoch", [0, 1], ids=["warm_up", "split"])
def test_a_row_without_an_image_is_as_if_it_were_left_out(epoch: int) -> None:
    whole, kept = rows(), torch.arange(COUNT) % 3 != 1
    absent = whole._replace(present={"image": kept})
    left = map_tensors(lambda tensor: tensor[kept], whole)
    left = left._replace(places=torch.arange(int(kept.sum())), numbers={"caption": 100 + torch.nonzero(kept)[:, 0]})
    loss = Loss(recipe="l2rm", alpha=0.0, beta=0.0, rematching=SETTINGS)
    found = []
    for some in (absent, left):
        objective = split(loss, epoch)
        rematched = objective.by_name["rematched"]
        assert isinstance(rematched, Rematched)
        total, _ = compare(Objective([objective.by_name["warm-up"], rematched]), some, some, Cosine())
        found.append((total, rematched.pair_losses(Comparison(some.normalised(), some.normalised()))))
    assert float(found[1][0].detach()) > 0
    leaves = [items.vector for items in whole.encoded.values()]
    agree(found[0][0], found[1][0], leaves, 1e-9)
    surveyed = found[0][1]
    assert surveyed.isnan().tolist() == (~kept).tolist()
    torch.testing.assert_close(surveyed[kept], found[1][1])
    before = rematched.clean.clone()
    rematched.take_survey(1, 100 + torch.arange(COUNT), surveyed.detach())
    assert torch.equal(rematched.clean[~kept], before[~kept]), "never surveyed"


def test_a_device_without_float64_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong pairs matched anew, and pairs that weigh: in float32 the loss is the same but for rounding."""
    loss = Loss(recipe="l2rm", rematching=replace(SETTINGS, cost="learned"))
    whole = map_tensors(lambda t: t.detach().float() if t.is_floating_point() else t, rows())
    certain = whole._replace(certain=CLEAN.float())
    rematched = split(loss, 1).float().by_name["rematched"]
    assert isinstance(rematched, Rematched)
    objective = Objective([rematched])
    expected = compare(objective, whole, whole, Cosine())[0]
    monkeypatch.setattr(hardware, "WITHOUT_FLOAT64", ("cpu",))
    with WithoutFloat64():
        found = compare(objective, whole, whole, Cosine())[0]
        assert torch.isfinite(compare(make_objective(Loss()), certain, certain, Cosine())[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        assert all(tensor.dtype != torch.float64 for tensor in tensors_of(made)), f"{operation} makes float64"
        return made


@pytest.mark.parametrize("trusted", [0, 1, COUNT - 1, COUNT], ids=["none", "one", "all_but_one", "all"])
def test_one_sided_batches_are_finite(trusted: int) -> None:
    whole, objective = rows(), split(Loss(recipe="l2rm", rematching=SETTINGS), 1)
    rematched = objective.by_name["rematched"]
    assert isinstance(rematched, Rematched)
    rematched.clean.copy_(torch.arange(COUNT) < trusted)
    total, _ = compare(objective, whole, whole, Cosine())
    gradients = torch.autograd.grad(total, [items.vector for items in whole.encoded.values()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("original", ["infonce", "hinge", "pcmc"])
def test_pairs_weigh_as_much_as_they_are_certain(original: Any) -> None:
    """The loop is over anchors, both ways: all items are candidates of each, and USA learns from no pairs."""
    certain = torch.linspace(0, 1, COUNT).double()
    whole = rows()._replace(certain=certain)
    loss = Loss(original=original, alpha=0.3, beta=0.7)
    objective = make_objective(loss).double()
    parts, plain = (compare(objective, some, some, Cosine())[1] for some in (whole, rows()))
    torch.testing.assert_close(parts["USA"], plain["USA"])
    assert not torch.isclose(parts["CSA"], plain["CSA"], rtol=1e-3)
    taus = objective.temperatures()
    scores = cosine_similarity(*(items.vector for items in whole.encoded.values()))
    teachers = [cosine_similarity(features, features) for features in whole.teachers.values()]
    first, aligned = torch.zeros(()), torch.zeros(())
    for way, teacher in zip((scores, scores.T), teachers, strict=True):
        for i in range(COUNT):
            same = GROUPS[i] == GROUPS
            if original == "hinge":
                value = (0.2 + way[i][~same] - way[i, i]).max().clamp(min=0) * COUNT
            else:
                value = -(way[i] / taus[objective.terms[0].name]).log_softmax(dim=0)[same].mean() / 2
            first = first + certain[i] * value / certain.sum()
            wanted = (teacher[i] / loss.teacher_temperature).softmax(dim=0)
            divergence = (wanted * (wanted.log() - (way[i] / taus["CSA"]).log_softmax(dim=0))).sum()
            aligned = aligned + certain[i] * divergence / certain.sum() / 2
    leaves = [items.vector for items in whole.encoded.values()]
    alone = compare(make_objective(replace(loss, beta=0.0)).double(), whole, whole, Cosine())[0]
    agree(alone, first + 0.3 * aligned, leaves, 1e-9)


@pytest.fixture(scope="module")
def noisy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path, wanted = tmp_path_factory.mktemp("noisy") / "store", small_scenes(val=8, test=8)
    extract(replace(wanted, data=replace(wanted.data, noise=Noise(ratio=0.5))), path)
    return Store.open(path)


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]) -> Iterator[None]:
    """A training within is stopped by a signal before this step of this epoch."""
    take = trainer.Training.step

    def stop_and_step(self: Any, batch: Any, epoch: int, at: int) -> Any:
        if (epoch, at) == place:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, batch, epoch, at)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(trainer.Training, "step", stop_and_step)
        yield


def test_a_run_stopped_in_any_epoch_resumes_bitwise_with_its_split(
    noisy_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = TrainParameters(
        student=Student(model="tiny_students:Dropping"),
        loss=Loss(recipe="l2rm", rematching=replace(SETTINGS, tau=0.05)),
        train=Train(epochs=3, batch_size=16, device="cpu", precision="fp32", compare=False, augment=True),
    )
    run(parameters, noisy_store, tmp_path / "whole")
    history = read_record(tmp_path / "whole" / "last.safetensors")["history"]
    assert not history[0]["terms"]
    assert {name for epoch in history[1:] for name in epoch["terms"]} == {
        f"rematched {figure}" for figure in ("kept", "AUC", "precision", "recall")
    }
    for place in ((0, 4), (1, 5), (2, 7)):
        with stopping(monkeypatch, place):
            run(parameters, noisy_store, tmp_path / "stopped")
    run(parameters, noisy_store, tmp_path / "stopped")
    for name in ("last", "best"):
        ours, theirs = (load_file(tmp_path / place / f"{name}.safetensors") for place in ("stopped", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)
    kept = theirs["objective.by_name.rematched.clean"]
    assert 0 < float((kept > 0.5).double().mean()) < 1, "the split splits"


def test_a_weighed_run_resumes_bitwise_and_wants_a_column(
    noisy_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = noisy_store.rows("train", "caption")
    write_clean(tmp_path / "clean.arrow", noisy_store, captions, np.linspace(0, 1, len(captions)))
    settings = Train(epochs=2, batch_size=60, device="cpu", precision="fp32", compare=False, clean_weight=True)
    parameters = TrainParameters(student=Student(model="tiny_students:Dropping"), train=settings)
    with refused(ParameterError, where="train.clean"):
        run(parameters, noisy_store, tmp_path / "none")
    weighed = replace(parameters, train=replace(settings, clean=str(tmp_path / "clean.arrow")))
    with refused(ParameterError, where="train.clean_weight"):
        run(replace(weighed, loss=Loss(original="pcmr", alpha=0.0, beta=0.0)), noisy_store, tmp_path / "none")
    run(weighed, noisy_store, tmp_path / "whole")
    with stopping(monkeypatch, (1, 1)):
        run(weighed, noisy_store, tmp_path / "stopped")
    run(weighed, noisy_store, tmp_path / "stopped")
    run(replace(weighed, train=replace(settings, clean_weight=False)), noisy_store, tmp_path / "plain")
    whole, stopped, plain = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "stopped", "plain"))
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())
    assert any(not torch.equal(plain[name], tensor) for name, tensor in whole.items())


def test_teachers_may_split_instead_and_a_training_leaves_its_own_split(noisy_store: Store, tmp_path: Path) -> None:
    """A clean column is of its own store alone; it splits from the first epoch on, or keeps pairs out."""
    captions = noisy_store.rows("train", "caption")
    wrong = Pairing(noisy_store, "train").wrong()
    assert wrong is not None
    column = tmp_path / "clean.arrow"
    write_clean(column, noisy_store, captions, (~wrong).astype(float))
    settings = Train(epochs=1, batch_size=16, device="cpu", compare=False, clean=str(column))
    parameters = TrainParameters(
        student=Student(model="tiny_students:Dropping"),
        loss=Loss(recipe="l2rm", rematching=replace(SETTINGS, warm_up=0, tau=0.05)),
        train=settings,
    )
    run(parameters, noisy_store, tmp_path / "split")
    (epoch,) = read_record(tmp_path / "split" / "last.safetensors")["history"]
    assert [epoch["terms"][f"rematched {name}"] for name in ("AUC", "precision", "recall")] == [1, 1, 1]
    found = read_clean(tmp_path / "split" / "clean.arrow", noisy_store)
    assert [column.tolist() for column in found] == [captions.tolist(), (~wrong).astype(float).tolist()]
    kept = TrainingData(
        noisy_store,
        replace(settings, clean_at_least=0.5),
        {"image": "hog-color", "text": "minilm"},
        {},
        torch.device("cpu"),
    )
    assert kept.stream.pairs == int((~wrong).sum())
    shutil.copytree(noisy_store.root, tmp_path / "other")
    extract(small_scenes(val=8, test=8), tmp_path / "other")
    with refused(StoreError, path=column):
        read_clean(column, Store.open(tmp_path / "other"))
    with refused(StoreError, path=tmp_path / "absent.arrow", expected="a clean column (train.clean, data.clean)"):
        read_clean(tmp_path / "absent.arrow", noisy_store)


def test_a_learned_cost_tells_right_pairs_from_others_and_leaves_the_student_alone() -> None:
    settings = replace(SETTINGS, cost="learned", weight=1.0)
    rematched = split(Loss(recipe="l2rm", rematching=settings), 1).by_name["rematched"]
    fixed = split(Loss(recipe="l2rm", rematching=SETTINGS), 1).by_name["rematched"]
    assert isinstance(rematched, Rematched)
    assert isinstance(fixed, Rematched)
    objective, whole = Objective([rematched]), rows()
    leaves = [items.vector for items in whole.encoded.values()]
    total, _ = compare(objective, whole, whole, Cosine())
    plain, _ = compare(Objective([fixed]), whole, whole, Cosine())
    assert total.item() > plain.item(), "it starts as 1 − score, and adds its own loss"
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(plain, leaves))
    optimizer = torch.optim.Adam(objective.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        compare(objective, whole, whole, Cosine())[0].backward()
        optimizer.step()
    scores = cosine_similarity(*(vector.detach() for vector in leaves))
    assert rematched.cost is not None
    gaps = [matrix[CLEAN].mean() - matrix.diagonal()[CLEAN].mean() for matrix in (1 - scores, rematched.cost(scores))]
    assert gaps[1].item() > gaps[0].item()
