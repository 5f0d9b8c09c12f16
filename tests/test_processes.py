"""Several real processes (gloo) train as one: exactly once, the same gradients, stopped and resumed together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from accelerate.utils import set_seed
from forked import CHECKOUT
from safetensors.torch import load_file
from torch import Tensor

from models.aligned import AlignedModel
from models.checkpoint import read_record
from models.small_fusion import small_fusion
from models.trained import load_trained
from stores import Store
from train.data.seeds import derived_seed

FAST = ["-S", "train.device=cpu", "-S", "train.precision=fp32", "-S", "train.compare=false"]


def arguments(store: Store, folder: Path, *flags: str) -> list[str]:
    return ["--params", os.devnull, "--store", str(store.root), "--run", str(folder), *FAST, *flags]


def start(processes: int, store: Store, folder: Path, *flags: str, program: str | Path = "train.cli") -> forked.Running:
    """Start cusa-train, or a script, in that many processes, as torchrun does."""
    return forked.start(program, *arguments(store, folder, *flags), processes=processes)


def launch(store: Store, folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Start cusa-train in two processes by torchrun itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
    return subprocess.Popen(
        [sys.executable, *launcher, sys.executable, "-m", "train.cli", *arguments(store, folder, *flags)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running: forked.Running) -> tuple[str, str]:
    output, errors = running.communicate()
    assert running.returncode == 0, errors
    return output, errors


def gradients(folder: Path) -> dict[str, Tensor]:
    """The gradient of a run of one step: AdamW's first moment is a tenth of it."""
    return {name: t for name, t in load_file(folder / "last.safetensors").items() if name.endswith(".exp_avg")}


ONE_STEP = [
    "-S",
    "train.batch_size=240",
    "-S",
    "train.epochs=1",
    "-S",
    "train.clip_norm=1e9",
    "-S",
    "student.model=tiny_students:Weighing",
]


@pytest.fixture(scope="module")
def alone(scenes_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(start(1, scenes_store, folder, *ONE_STEP))
    return folder


@pytest.mark.parametrize(
    ("processes", "flags"), [(2, []), (3, ["-S", "train.micro_batch=17"]), (1, ["-S", "train.micro_batch=32"])]
)
def test_processes_and_micro_batches_give_the_gradient_of_the_whole_batch(
    scenes_store: Store, alone: Path, tmp_path: Path, processes: int, flags: list[str]
) -> None:
    finish(start(processes, scenes_store, tmp_path / "run", *ONE_STEP, *flags))
    found, expected = gradients(tmp_path / "run"), gradients(alone)
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    weights, whole = (load_file(f / "last.safetensors") for f in (tmp_path / "run", alone))
    for name, tensor in whole.items():
        if name.startswith("model."):
            # AdamW's first step is ± the learning rate whatever the size: where a gradient is nothing but rounding,
            # so is its sign.
            close = (weights[name] - tensor).abs() < 1e-5
            assert close.float().mean() > 0.97, name
    losses = [read_record(f / "last.safetensors")["history"][0]["loss"] for f in (tmp_path / "run", alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert sorted(losses[0]) == ["CSA", "InfoNCE", "USA", "total"]


SEEN = """
import json, os, sys
from pathlib import Path
from train.fit import trainer
take = trainer.Training.step
def step(self, batch, epoch, step):
    with open(Path(os.environ["SEEN"]) / f"{self._processes.rank}.jsonl", "a") as file:
        print(json.dumps([epoch, step, batch.numbers["caption"].tolist()]), file=file)
    return take(self, batch, epoch, step)
trainer.Training.step = step
from train.cli import main
main()
"""


def test_every_pair_comes_exactly_once_over_processes_and_workers(
    scenes_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """240 pairs in batches of 33 over 3 processes with 2 workers each: 7 steps everywhere, 9 pairs dropped and said."""
    monkeypatch.setenv("SEEN", str(tmp_path))
    (tmp_path / "seen.py").write_text(SEEN)
    flags = ["-S", "train.batch_size=33", "-S", "train.epochs=2", "-S", "train.workers=2"]
    flags += ["-S", "student.model=tiny_students:Tiny"]
    _, said = finish(start(3, scenes_store, tmp_path / "run", *flags, program=tmp_path / "seen.py"))
    seen = [[json.loads(line) for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines()] for rank in range(3)]
    assert [[(epoch, step) for epoch, step, _ in rank] for rank in seen] == [
        [(epoch, step) for epoch in range(2) for step in range(7)]
    ] * 3
    pairs = set(scenes_store.rows("train", "caption").tolist())
    by_rank = []
    for epoch in range(2):
        shares = [[row for e, _, rows in rank if e == epoch for row in rows] for rank in seen]
        by_rank.append([set(share) for share in shares])
        everything = [row for share in shares for row in share]
        assert len(everything) == len(set(everything)) == 7 * 33
        assert set(everything) <= pairs
    assert by_rank[0][0] != by_rank[1][0], "pairs move between the processes from epoch to epoch"
    said = " ".join(said.split())
    assert "3 processes on cpu" in said
    assert said.count("pairs an epoch") == 1, "only the main process speaks"
    assert "9 over an even number dropped" in said


def test_a_signal_stops_all_processes_at_one_step_and_they_resume(scenes_store: Store, tmp_path: Path) -> None:
    flags = ["-S", "train.batch_size=16", "-S", "train.epochs=3", "-S", "student.model=tiny_students:Dropping"]
    finish(start(2, scenes_store, tmp_path / "whole", *flags))
    running = launch(scenes_store, tmp_path / "cut", *flags, "-S", "train.save_every=1")
    last = tmp_path / "cut" / "last.safetensors"
    deadline = time.monotonic() + 300
    while not last.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=300)
    record = read_record(last)
    assert len(record["history"]) < 3, "stopped too late to show anything"
    assert errors.count("Stopped soft_labels after step") == 1, errors
    finish(start(2, scenes_store, tmp_path / "cut", *flags))
    found, expected = load_file(last), load_file(tmp_path / "whole" / "last.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_batch_statistics_are_measured_as_they_are_saved(scenes_store: Store, tmp_path: Path) -> None:
    """Each process normalises over its own share; what is measured and saved are the main one's statistics."""
    flags = ["-S", "train.batch_size=24", "-S", "train.epochs=2", "-S", "eval.test=val"]
    finish(start(2, scenes_store, tmp_path / "run", *flags))
    (measured,) = json.loads((tmp_path / "run" / "metrics.json").read_text()).values()
    assert measured["RSUM"] == measured["validation_RSUM"]


def test_what_no_term_reaches_stays_as_it_is_and_the_checkpoint_loads(scenes_store: Store, tmp_path: Path) -> None:
    """A student that matches, by a loss that does not: its fusion encoder has no gradient, in any process."""
    flags = ["-S", "train.batch_size=80", "-S", "train.epochs=1", "-S", "train.weight_decay=1.0", "-S", "loss.beta=0"]
    flags += ["-S", "student.model=models.small_fusion:small_fusion"]
    _, said = finish(start(2, scenes_store, tmp_path / "run", *flags))
    assert said.count("weights that the student matches by do not learn") == 1
    found = load_trained(tmp_path / "run" / "last.safetensors").model.state_dict()
    set_seed(derived_seed(0))
    expected = AlignedModel(small_fusion(), uni_modal=False).state_dict()
    changed = {name.split(".")[1] for name, tensor in expected.items() if not torch.equal(found[name], tensor)}
    assert changed == {"towers_alone"}


def test_a_cost_that_is_learned_later_holds_no_process_up(scenes_store: Store, tmp_path: Path) -> None:
    flags = ["-S", "train.batch_size=120", "-S", "train.epochs=2", "-S", "student.model=tiny_students:Tiny"]
    flags += ["-S", "loss.recipe=l2rm", "-S", "loss.rematching={cost: learned, warm_up: 1}"]
    finish(start(2, scenes_store, tmp_path / "run", *flags))
    scale = load_file(tmp_path / "run" / "last.safetensors")["objective.by_name.rematched.cost.scale"]
    assert scale != 1, "it learns once the warm-up is over"


def test_what_cannot_be_shared_is_refused_before_anything_starts(scenes_store: Store, tmp_path: Path) -> None:
    running = start(2, scenes_store, tmp_path / "run", "-S", "train.batch_size=15")
    _, errors = running.communicate()
    assert running.returncode != 0
    assert "train.batch_size" in errors
    assert "15" in errors
    assert "Traceback" not in errors


def test_the_main_process_s_error_ends_all_and_is_said_once(scenes_store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    running = start(2, scenes_store, tmp_path / "run")
    _, errors = running.communicate()
    assert running.returncode != 0
    assert errors.count("is not empty and holds no run of") == 1
