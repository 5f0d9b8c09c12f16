"""Any student: sets and regions are trained, stopped and resumed, in several processes, measured and reported."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import core_students
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_processes import finish, gradients, start

from models.checkpoint import read_record
from models.encoded import Encoded, concatenated
from models.scoring import Pairwise
from models.sgraf.vocabulary import Vocabulary
from stores import Store, TrainParameters
from stores.errors import RunFolderError
from stores.parameters import Loss, Rematching, Sgraf, Student, Train
from train.run import run

STUDENTS = ("core_students:Sets", "core_students:Regions")
QUICK = TrainParameters(train=Train(epochs=2, batch_size=16, device="cpu", precision="fp32", compare=False))


@pytest.fixture
def store(regions_store: Store) -> Store:
    return regions_store


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_is_trained_measured_and_reported(store: Store, tmp_path: Path, student: str) -> None:
    parameters = replace(QUICK, student=Student(model=student))
    core_students.Assignment.measured = 0
    measured = run(parameters, store, tmp_path / "run", report=True)["soft_labels"]
    assert {"RSUM", "true_relevance", "image_class_R@1", "caption_spearman", "median_rank"} <= measured.keys()
    history = read_record(tmp_path / "run" / "last.safetensors")["history"]
    assert history[1]["loss"]["total"] < history[0]["loss"]["total"]
    assert all(text in (tmp_path / "run" / "report.html").read_text() for text in ("Cases", "Curves", "USA image"))
    if student == STUDENTS[0]:
        sizes = [len(store.rows(split, "sample")) * len(store.rows(split, "caption")) for split in ("val", "test")]
        assert core_students.Assignment.measured == 2 * sizes[0] + sizes[1], "each pair once in each evaluation"
    assert not list((tmp_path / "run").glob("scores*"))


@pytest.mark.parametrize(("student", "recipe"), [(STUDENTS[0], "maxmatch"), (STUDENTS[1], "cusa")])
def test_processes_and_micro_batches_give_the_gradient_of_the_whole_batch(
    store: Store, tmp_path: Path, student: str, recipe: str
) -> None:
    common = ["-S", "train.batch_size=60", "-S", "train.epochs=1", "-S", "train.clip_norm=1e9"]
    common += ["-S", f"student.model={student}", "-S", f"loss.recipe={recipe}", "-S", "loss.sets.diversity=0.1"]
    finish(start(1, store, tmp_path / "alone", *common))
    finish(start(2, store, tmp_path / "run", *common, "-S", "train.micro_batch=17"))
    found, expected = gradients(tmp_path / "run"), gradients(tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def vocabulary(regions_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nltk", reason="the extra sgraf is not installed")
    path = tmp_path_factory.mktemp("words") / "vocabulary.json"
    Vocabulary.of(regions_store.captions["text"].to_pylist(), sentences=False).write(path)
    return path


@pytest.mark.parametrize("student", ["sgraf:SGR", "sgraf:SAF", STUDENTS[0]], ids=["sgr", "saf", "sets"])
def test_wrong_pairs_are_split_and_matched_anew_with_any_student(
    store: Store, vocabulary: Path, tmp_path: Path, student: str
) -> None:
    """Two epochs of L2RM, of which the first warms up."""
    sizes = Sgraf(dim=16, word=8, similarity=8, vocabulary=str(vocabulary))
    loss = Loss(recipe="l2rm", original="hinge", alpha=0, beta=0, rematching=Rematching(warm_up=1))
    run(replace(QUICK, student=Student(model=student, sgraf=sizes), loss=loss), store, tmp_path / "run")
    warm, split = read_record(tmp_path / "run" / "last.safetensors")["history"]
    assert warm["loss"]["warm-up"] > 0 == warm["loss"]["rematched"]
    assert split["loss"]["warm-up"] == 0
    assert 0 < split["terms"]["rematched kept"] < 1
    assert split["loss"]["rematched"] > 0
    assert np.isfinite(list(split["loss"].values())).all()


def test_two_processes_split_wrong_pairs_as_one(store: Store, tmp_path: Path) -> None:
    flags = ["-S", "train.batch_size=240", "-S", "train.epochs=1", "-S", "train.clip_norm=1e9", "-S"]
    flags += [f"student.model={STUDENTS[0]}", "-S", "loss.recipe=l2rm", "-S", "loss.rematching.warm_up=0"]
    flags += ["-S", "loss.alpha=0", "-S", "loss.beta=0"]
    finish(start(1, store, tmp_path / "alone", *flags))
    finish(start(2, store, tmp_path / "run", *flags))
    splits = [
        load_file(tmp_path / name / "last.safetensors")["objective.by_name.rematched.clean"]
        for name in ("alone", "run")
    ]
    torch.testing.assert_close(splits[1], splits[0], rtol=0, atol=1e-3)
    assert 0 < float((splits[0] > 0.5).double().mean()) < 1
    found, expected = gradients(tmp_path / "run"), gradients(tmp_path / "alone")
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(("student", "processes"), [(STUDENTS[0], 2), (STUDENTS[1], 1)])
def test_a_stopped_training_goes_on_as_if_never_stopped(
    store: Store, tmp_path: Path, student: str, processes: int
) -> None:
    flags = ["-S", "train.batch_size=16", "-S", "train.epochs=3", "-S", f"student.model={student}"]
    flags += ["-S", "train.micro_batch=5"]
    finish(start(processes, store, tmp_path / "whole", *flags))
    running = start(processes, store, tmp_path / "cut", *flags, "-S", "train.save_every=1")
    last = tmp_path / "cut" / "last.safetensors"
    deadline = time.monotonic() + 300
    while not last.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=300)
    assert len(read_record(last)["history"]) < 3, "stopped too late to show anything"
    finish(start(processes, store, tmp_path / "cut", *flags))
    found, expected = load_file(last), load_file(tmp_path / "whole" / "last.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_a_broken_scorer_costs_no_other_figure(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = core_students.Assignment.matrix
    test = len(store.rows("test", "sample"))

    def breaks(self: core_students.Assignment, first: Encoded, second: Encoded) -> torch.Tensor:
        scores = whole(self, first, second)
        return scores / 0 if not torch.is_grad_enabled() and first.size == test else scores

    monkeypatch.setattr(core_students.Assignment, "matrix", breaks)
    small = replace(QUICK, student=Student(model=STUDENTS[0]), train=replace(QUICK.train, epochs=1))
    measured = run(small, store, tmp_path / "run", report=False)["soft_labels"]
    assert "RSUM" not in measured
    assert {"image_class_R@1", "caption_spearman"} <= measured.keys()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["soft_labels"] == measured
    said = " ".join(capsys.readouterr().err.split())
    assert "retrieval is not measured on test: The student's scores are not finite" in said


def test_other_stored_features_make_another_run(store: Store, tmp_path: Path) -> None:
    small = replace(QUICK, student=Student(model=STUDENTS[1]), train=replace(QUICK.train, epochs=1))
    run(small, store, tmp_path / "run")
    manifest = store.manifest
    changed = replace(manifest.features["regions"], fingerprint="0" * 64)
    assert "regions" in json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    other = Store(store.root, replace(manifest, features={**manifest.features, "regions": changed}))
    with pytest.raises(RunFolderError) as caught:
        run(small, other, tmp_path / "run")
    assert "data.regions" in str(caught.value.where)


def test_padding_changes_no_score() -> None:
    torch.manual_seed(0)
    scorer = Pairwise(core_students.Words(), pair_bytes=2**27)  # two pairs at once
    regions = Encoded(torch.zeros(3, 4), parts=torch.randn(3, 36, 4))
    texts = [Encoded(torch.zeros(1, 4), parts=torch.randn(1, length, 4)).masked() for length in (5, 2, 9, 1)]
    together = scorer.matrix(regions, concatenated(texts))
    alone = torch.cat([scorer.matrix(regions, text) for text in texts], dim=1)
    torch.testing.assert_close(together, alone)
    paired = scorer.pairs(regions, concatenated(texts[:3]))
    torch.testing.assert_close(paired, together[:, :3].diagonal())


@pytest.mark.parametrize("page", ["students.md", "training.md"])
def test_the_examples_of_the_docs_train(
    store: Store, tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / page).read_text()
    name, code = re.findall(r"```python\n(# (?:regions|my_losses)\.py.*?)```", text, re.DOTALL)[0].split("\n", 1)
    module = name.split()[1].removesuffix(".py")
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    small = replace(QUICK, train=replace(QUICK.train, epochs=1, batch_size=48))
    small = (
        replace(small, student=Student(model="regions:Regions"), loss=Loss(original="hinge"))
        if module == "regions"
        else replace(small, loss=Loss(extra={"my_losses:Spread": 0.25}))
    )
    measured = run(small, store, tmp_path / "run")["soft_labels"]
    assert "RSUM" in measured
    losses = read_record(tmp_path / "run" / "last.safetensors")["history"][0]["loss"]
    assert {"Hinge" if module == "regions" else "Spread", "CSA", "USA"} <= losses.keys()
