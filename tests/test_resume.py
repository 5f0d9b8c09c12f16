"""A training stopped at any step goes on to the very samples, losses and weights of an undisturbed one, bitwise."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import read_record
from stores import Store, TrainParameters
from stores.parameters import Student, Train
from train.fit import trainer
from train.run import run

STEPS = 15
"""Steps of an epoch of the small store: 240 pairs in batches of 16."""
PARAMETERS = TrainParameters(
    student=Student(model="tiny_students:Dropping"),
    train=Train(epochs=2, batch_size=16, device="cpu", precision="fp32", compare=False, augment=True, save_every=4),
)


def changed(**settings: Any) -> TrainParameters:
    return replace(PARAMETERS, train=replace(PARAMETERS.train, **settings))


@pytest.fixture(scope="module")
def whole(scenes_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(PARAMETERS, scenes_store, folder)
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, optimiser, losses and test figures are bitwise those of the undisturbed run."""
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    for name in ("last", "best"):
        found, expected = load_file(folder / f"{name}.safetensors"), load_file(whole / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for tensor in expected:
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=0, atol=0, msg=f"{name}: {tensor}")
    losses = [[epoch["loss"] for epoch in read_record(f / "last.safetensors")["history"]] for f in (folder, whole)]
    assert losses[0] == losses[1]


def signal_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process signalled in the step of that number, counted from 0 over the whole run."""
    take = trainer.Training.step

    def step_and_signal(self: Any, batch: Any, epoch: int, at: int) -> Any:
        if epoch * STEPS + at == step:
            os.kill(os.getpid(), number)
        return take(self, batch, epoch, at)

    monkeypatch.setattr(trainer.Training, "step", step_and_signal)


def stop_and_go_on(
    store: Store,
    folder: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    number: int = signal.SIGTERM,
    workers: int = 0,
) -> None:
    signal_at(step, number, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        run(PARAMETERS, store, folder)
    monkeypatch.undo()
    assert stopped.value.code == 128 + number
    record = read_record(folder / "last.safetensors")
    assert len(record["history"]) * STEPS + record["done"]["step"] == step + 1
    run(changed(workers=workers), store, folder)


def at_random(first: int, beyond: int) -> int:
    """Return a number that is another in every run, and printed where the test fails."""
    drawn = random.SystemRandom().randrange(first, beyond)
    sys.stdout.write(f"drawn: {drawn}\n")
    return drawn


@pytest.mark.parametrize("workers", range(3))
def test_a_run_stopped_at_a_random_step_resumes_bitwise(
    scenes_store: Store, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    step = at_random(0, 2 * STEPS)
    stop_and_go_on(scenes_store, tmp_path / "run", step, monkeypatch, workers=workers)
    assert_same(tmp_path / "run", whole)


def test_ctrl_c_saves_as_well(
    scenes_store: Store,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_and_go_on(scenes_store, tmp_path / "run", 20, monkeypatch, signal.SIGINT)
    assert "Stopped soft_labels after step 6 of 15 of epoch 2, saved in" in capsys.readouterr().err
    assert_same(tmp_path / "run", whole)


def test_a_stop_while_measuring_loses_nothing(
    scenes_store: Store, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = trainer.embed_split

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(*arguments)

    monkeypatch.setattr(trainer, "embed_split", signalled)
    with pytest.raises(SystemExit):
        run(PARAMETERS, scenes_store, tmp_path / "run")
    monkeypatch.undo()
    record = read_record(tmp_path / "run" / "last.safetensors")
    assert (len(record["history"]), record["done"]["step"]) == (0, STEPS)
    run(PARAMETERS, scenes_store, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


KILL = """
import os, signal, sys
from train.fit import trainer
take, at = trainer.Training.step, int(sys.argv.pop())
def step(self, batch, epoch, step):
    if epoch * {steps} + step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, batch, epoch, step)
trainer.Training.step = step
from train.cli import main
main()
"""


def kill_at(step: int, store: Path, folder: Path, workers: int) -> None:
    """Run cusa-train in a process of its own, with the parameters above, and have it killed in that step."""
    settings = {**vars(PARAMETERS.train), "workers": workers}
    (folder.parent / "p.json").write_text(
        json.dumps({"student": {"model": PARAMETERS.student.model}, "train": settings})
    )
    flags = ["--params", folder.parent / "p.json", "--store", store, "--run", folder]
    (folder.parent / "kill.py").write_text(KILL.format(steps=STEPS))
    killed = forked.start(folder.parent / "kill.py", *map(str, flags), str(step))
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors


def test_a_killed_run_goes_on_from_its_last_periodic_checkpoint(
    scenes_store: Store, whole: Path, tmp_path: Path
) -> None:
    step = at_random(STEPS + 5, 2 * STEPS)
    kill_at(step, scenes_store.root, tmp_path / "run", workers=1)
    record = read_record(tmp_path / "run" / "last.safetensors")
    assert len(record["history"]) == 1
    assert record["done"]["step"] == (step - STEPS) // 4 * 4
    run(PARAMETERS, scenes_store, tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_twenty_random_stops(
    scenes_store: Store,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    step, workers = at_random(0, 2 * STEPS), at_random(0, 3)
    if number % 2:
        kill_at(step, scenes_store.root, tmp_path / "run", workers)
        run(PARAMETERS, scenes_store, tmp_path / "run")
    else:
        stop_and_go_on(scenes_store, tmp_path / "run", step, monkeypatch, workers=workers)
    assert_same(tmp_path / "run", whole)
