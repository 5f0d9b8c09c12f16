"""A training that begins with the weights of another run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from stores import Store, TrainParameters
from stores.errors import CheckpointError, RunFolderError
from stores.parameters import Loss, Student, Train
from train.run import run

CUSA = TrainParameters(
    student=Student(model="tiny_students:Weighing"),
    # A rate of nothing: what is saved is what the training began with.
    train=Train(
        epochs=1,
        batch_size=16,
        device="cpu",
        precision="fp32",
        compare=False,
        seed=1,
        learning_rate=1e-30,
        final_learning_rate=0.0,
    ),
)
ALONE = replace(CUSA, loss=Loss(alpha=0.0, beta=0.0))


def beginning(parameters: TrainParameters, path: Path, **student: object) -> TrainParameters:
    return replace(parameters, student=replace(parameters.student, weights=str(path), **student))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if name.startswith("model.")}


@pytest.mark.parametrize("loss", ["cusa", "alone"])
def test_a_run_begins_with_another_s_weights(scenes_store: Store, scenes_run: Path, tmp_path: Path, loss: str) -> None:
    run(beginning({"cusa": CUSA, "alone": ALONE}[loss], scenes_run), scenes_store, tmp_path / "run")
    expected, found = weights(scenes_run / "best.safetensors"), weights(tmp_path / "run" / "best.safetensors")
    heads = {name for name in expected if name.startswith("model.uni_heads.")}
    assert heads
    assert expected.keys() - found.keys() == (heads if loss == "alone" else set())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-12, msg=name)


def test_heads_that_the_run_had_none_of_start_anew(scenes_store: Store, tmp_path: Path) -> None:
    run(ALONE, scenes_store, tmp_path / "alone")
    run(beginning(CUSA, tmp_path / "alone" / "last.safetensors"), scenes_store, tmp_path / "cusa")
    found = weights(tmp_path / "cusa" / "best.safetensors")
    torch.testing.assert_close(found["model.uni_heads.image.1.weight"].diagonal(), torch.ones(16))


def test_other_weights_make_another_run(scenes_store: Store, scenes_run: Path, tmp_path: Path) -> None:
    shutil.copy(scenes_run / "best.safetensors", tmp_path / "first.safetensors")
    parameters = beginning(CUSA, tmp_path / "first.safetensors")
    before = run(parameters, scenes_store, tmp_path / "run")
    assert run(parameters, scenes_store, tmp_path / "run") == before
    shutil.copy(scenes_run / "last.safetensors", tmp_path / "first.safetensors")
    with pytest.raises(RunFolderError) as caught:
        run(parameters, scenes_store, tmp_path / "run")
    assert str(caught.value.where).startswith("data.weights ")


def test_what_does_not_fit_is_refused_before_anything_is_removed(
    scenes_store: Store, scenes_run: Path, tmp_path: Path
) -> None:
    run(CUSA, scenes_store, tmp_path / "run")
    other = beginning(CUSA, scenes_run, model="open-clip:small-clip")
    with refused(CheckpointError, where="student.weights", path=scenes_run / "best.safetensors"):
        run(other, scenes_store, tmp_path / "run", overwrite=True)
    with refused(RunFolderError, path=tmp_path / "run"):
        run(beginning(CUSA, tmp_path / "run"), scenes_store, tmp_path / "run", overwrite=True)
    with refused(CheckpointError, path=tmp_path / "none"):
        run(beginning(CUSA, tmp_path / "none"), scenes_store, tmp_path / "new")
    assert (tmp_path / "run" / "best.safetensors").exists()
