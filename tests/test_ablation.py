"""The ablation: every setting is trained and told, differences are paired by seed, and nothing is left running."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.ablation import ablate, settings
from experiments.comparison import Outcome, differences, spread, write_comparison
from stores import ExtractParameters, Store, TrainingError, TrainParameters, load_parameters
from stores.parameters import Data, Loss, Teachers, Train

QUICK = TrainParameters(train=Train(epochs=1, batch_size=16, device="cpu", precision="fp32"))
ALONE, CSA = ("", "InfoNCE"), ("ours", "+ CSA")
COMMAND = [sys.executable, "-m", "experiments.ablation"]


def test_every_setting_is_trained_and_told(scenes_store: Store, tmp_path: Path) -> None:
    tables = ablate(QUICK, scenes_store.root, tmp_path, seeds=(3,)).read_text()
    rows = list(csv.DictReader((tmp_path / "ablation.csv").read_text().splitlines()))
    assert [(row["settings"], row["parts"]) for row in rows] == [
        ("", "InfoNCE"),
        *(("paper", parts) for parts in ("+ CSA", "+ USA", "+ CUSA")),
        *(("ours", parts) for parts in ("+ CSA", "+ USA", "+ CUSA")),
    ]
    assert [(row["tau_p"], row["alpha"], row["beta"]) for row in rows[1:4]] == [
        ("1", "0.1", "0"),
        ("1", "0", "0.5"),
        ("1", "0.1", "0.5"),
    ]
    assert {row["seed"] for row in rows} == {"3"}
    for row in rows:
        place = "-".join(filter(None, (row["settings"], row["parts"]))).replace("+ ", "").lower()
        loss = json.loads((tmp_path / "runs" / place / "seed-3" / "run.json").read_text())["parameters"]["loss"]
        found = (loss["teacher_temperature"], loss["alpha"], loss["beta"])
        assert found == tuple(float(row[name]) for name in ("tau_p", "alpha", "beta"))
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("true mAP@R i→t", "caption Spearman"))
    assert "| + CUSA | CUSA paper | +7.1 / +6.3 | +1.9 (avg) | +1.9 (avg) | +5.8 (avg) | +3.8 (avg) |" in tables
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_the_paper_s_settings_keep_what_else_ours_say() -> None:
    losses = settings(Loss(alpha=2.0, beta=0.25, teacher_temperature=0.07, mix="add"))
    assert losses["paper", "+ CUSA"] == Loss(alpha=0.1, beta=0.5, teacher_temperature=1.0, mix="add")
    assert losses["ours", "+ USA"] == Loss(alpha=0.0, beta=0.25, teacher_temperature=0.07, mix="add")
    assert losses["", "InfoNCE"].alpha == losses["", "InfoNCE"].beta == 0.0


def test_coco_mini_s_parameters_serve_both_stages() -> None:
    path = Path(__file__).parents[1] / "experiments" / "coco-mini.yaml"
    extracted, trained = load_parameters(ExtractParameters, path), load_parameters(TrainParameters, path)
    assert extracted.data == Data(source="../shared/data/coco-mini/dataset_karpathy.json")
    assert trained.train == Train(epochs=12, batch_size=64)
    assert extracted.teachers == trained.teachers == Teachers(image="hog-color", text="minilm")


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    alone, with_csa = {0: 10.0, 1: 30.0, 2: 50.0}, {2: 52.0, 0: 11.0, 1: 33.0}
    outcomes = [Outcome(ALONE, seed, Loss(), {"RSUM": value}) for seed, value in alone.items()]
    outcomes += [Outcome(CSA, seed, Loss(beta=0.0), {"RSUM": value}) for seed, value in with_csa.items()]
    assert sorted(differences(outcomes, CSA, "RSUM")) == [1.0, 2.0, 3.0]
    tables = write_comparison(outcomes, tmp_path).read_text()
    assert "| + CSA | ours: τ_P 0.1, α 1 | 32.0 ± 20.5 |" in tables
    # 2.0 ± 1.0 of three: the half width of the interval is 4.303 · 1 / √3 = 2.48.
    assert "| + CSA | ours: τ_P 0.1, α 1 | +2.0 ± 1.0 |" in tables


@pytest.mark.parametrize(
    ("values", "sure"), [([2.4, 3.0, 3.6], True), ([-1.0, -1.1, -1.2], True), ([2.0, 3.0, 1.0], False), ([5.0], False)]
)
def test_a_difference_is_sure_where_the_interval_leaves_out_zero(values: list[float], sure: bool) -> None:
    assert spread(values).is_sure == sure


@pytest.mark.soak
def test_what_cannot_be_trained_is_said(scenes_store: Store, tmp_path: Path) -> None:
    broken = replace(QUICK, train=replace(QUICK.train, batch_size=100_000))
    with pytest.raises(TrainingError, match="batch"):
        ablate(broken, scenes_store.root, tmp_path, seeds=(0,))


@pytest.mark.soak
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_stopped_ablation_leaves_nothing_running_and_goes_on(tmp_path: Path, way: signal.Signals) -> None:
    (tmp_path / "params.yaml").write_text(
        "data: {scenes: {train: 64, val: 16, test: 16}}\ntrain: {epochs: 1, batch_size: 16}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        COMMAND,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as begun:
        assert begun.stderr is not None
        for line in begun.stderr:
            if line.startswith("3 of 21"):
                break
        begun.send_signal(way)
        # The pipe ends when every process that holds it has.
        said = begun.stderr.read()
    if way == signal.SIGINT:
        assert begun.returncode == 130
        assert "Run the same command again" in said
        assert "Traceback" not in said
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts/ablation/ablation.md").exists()
