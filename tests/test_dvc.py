"""Both stages under DVC in a small copy of the project: what is run again, and what an experiment keeps.

Teachers and student are the tests' own: those of the packages are seconds of loading for each of six commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

CHECKOUT = Path(__file__).resolve().parents[1]
METRICS = "artifacts/figures/metrics.json"
CURVE = "artifacts/figures/curves/loss/CSA.tsv"
ALONE = ("-S", "train.compare=false", "-S", "train.epochs=1")


class Project:
    """A Git repository with the tracked part of a checkout, small data, small models and short trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for name in ("models", "pipeline", "stores", "train", "dvc.yaml", ".dvcignore", ".gitignore"):
            source = CHECKOUT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, root / name)
        for name in ("tiny_students.py", "tiny_teachers.py"):
            shutil.copy(CHECKOUT / "tests" / name, root / name)
        (root / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copy(CHECKOUT / ".dvc" / name, root / ".dvc" / name)
        values = YAML(typ="safe").load(CHECKOUT / "params.yaml")
        values["data"]["scenes"] |= {"train": 24, "val": 6, "test": 8}
        values["teachers"] |= {"image": "tiny_teachers:mean_colour", "text": "tiny_teachers:length"}
        values["student"]["model"] = "tiny_students:Tiny"
        values["train"] |= {"epochs": 2, "batch_size": 8}
        YAML().dump(values, root / "params.yaml")
        self.git("init", "--quiet")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@example.org")
        self.commit()

    def run(self, *command: str, fails: bool = False) -> str:
        """Return what a command printed; of one that is to fail, its errors as well."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def dvc(self, *arguments: str, fails: bool = False) -> str:
        return self.run("dvc", *arguments, fails=fails)

    def shown(self, *arguments: str) -> Any:
        return json.loads(self.dvc(*arguments, "--json"))

    def plots(self) -> str:
        """Return the page that `dvc plots show` writes."""
        return Path(self.dvc("plots", "show").strip().removeprefix("file://")).read_text()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", "a state")

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def figures(self) -> dict[str, Any]:
        """Return the metrics that `dvc exp show` has, by the name of the experiment, "workspace" or the branch."""
        table = self.shown("exp", "show")
        rows = {row["name"] or "workspace": row["data"] for row in table}
        rows |= {one["name"]: one["revs"][0]["data"] for row in table for one in row["experiments"] or []}
        return {name: row["metrics"][METRICS].get("data") for name, row in rows.items()}


def test_dvc_runs_only_what_changed_and_an_experiment_keeps_its_figures(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    baseline = repro(project)
    project.commit()
    changed = project.dvc("exp", "run", "-n", "here", "-S", "loss.alpha=0.3", *ALONE)
    assert "Stage 'extract' didn't change, skipping" in changed
    assert "Running stage 'train'" in changed
    in_copies(project, tmp_path / "store")
    figures = project.figures()
    assert figures["workspace"] == figures["here"] == json.loads(project.read(METRICS))
    assert baseline in figures.values()
    assert len({json.dumps(figures[name]) for name in ("here", "queued", "copied")}) == 3
    applied(project, figures)
    compared(project, figures)
    failed(project)


def repro(project: Project) -> dict[str, Any]:
    """Run the pipeline, twice, and return its metrics."""
    first = project.dvc("repro")
    assert "Running stage 'extract'" in first
    assert "Running stage 'train'" in first
    assert project.git("status", "--short").split() == ["??", "dvc.lock"]
    assert "Data and pipelines are up to date" in project.dvc("repro")
    page = project.plots()
    assert all(name in page for name in ("validation RSUM", "infonce", "CSA", "temperature", "curves.png"))
    metrics: dict[str, Any] = json.loads(project.read("artifacts/run/metrics.json"))
    assert project.shown("metrics", "show")[""]["data"][METRICS]["data"] == metrics
    return metrics


def in_copies(project: Project, shared: Path) -> None:
    """Run one experiment by the queue, with a store outside the project, and one in a copy that gets the store."""
    shutil.copytree(project.root / "artifacts/store", shared)
    pipeline = project.read("dvc.yaml")
    assert "store: artifacts/store" in pipeline
    (project.root / "dvc.yaml").write_text(pipeline.replace("store: artifacts/store", f"store: {shared}"))
    project.dvc("exp", "run", "--queue", "-n", "queued", "-S", "loss.alpha=0.7", *ALONE)
    (project.root / "dvc.yaml").write_text(pipeline)
    before = project.read(METRICS), project.read(CURVE)
    # The worker lives on with the streams of the command that started it.
    project.run("sh", "-c", "dvc queue start >/dev/null 2>&1")
    copied = project.dvc("exp", "run", "--temp", "-C", "artifacts/store", "-n", "copied", "-S", "loss.beta=9", *ALONE)
    assert "Stage 'extract' didn't change, skipping" in copied
    deadline = time.monotonic() + 200
    while not project.git("for-each-ref", "refs/exps/*/*/queued") and time.monotonic() < deadline:
        time.sleep(1)
    assert "nothing to do" in " ".join(project.dvc("queue", "logs", "queued").split())
    project.dvc("queue", "stop")
    assert (project.read(METRICS), project.read(CURVE)) == before


def applied(project: Project, figures: dict[str, Any]) -> None:
    """Metrics and curves are the experiment's; the store and the weights stay, and so do a person's files."""
    weights, curve = project.root / "artifacts/run/best.safetensors", project.read(CURVE)
    kept = weights.read_bytes()
    (project.root / "artifacts/figures/notes.txt").write_text("mine")
    for name in ("queued", "copied"):
        project.dvc("exp", "apply", name)
        assert project.figures()["workspace"] == json.loads(project.read(METRICS)) == figures[name]
        assert project.read(CURVE) != curve
        assert project.dvc("status").split() == ["train:", "changed", "outs:", "modified:", "artifacts/run"]
        assert weights.read_bytes() == kept
    assert not (project.root / "artifacts/figures/curves/infonce").exists()
    assert project.read("artifacts/figures/notes.txt") == "mine"


def compared(project: Project, figures: dict[str, Any]) -> None:
    old, new = (figures[name]["soft_labels"]["caption_spearman"] for name in ("here", "copied"))
    for found in (
        project.shown("metrics", "diff", "here", "copied")[METRICS],
        project.shown("exp", "diff", "here", "copied")["metrics"][METRICS],
    ):
        change = found["soft_labels.caption_spearman"]
        assert (change["old"], change["new"]) == (old, new)
    plots = project.shown("plots", "diff", "here", "copied")["data"]
    for name in ("validation RSUM", "loss", "temperature"):
        assert {point["rev"] for point in plots[name][0]["content"]["data"]["values"]} == {"here", "copied"}
    assert [image["revisions"] for image in plots["artifacts/figures/curves/curves.png"]] == [["here"], ["copied"]]


def failed(project: Project) -> None:
    """Nothing old stands for an experiment that came to nothing."""
    assert "loss.mix: found 'none'" in project.dvc("exp", "run", "-n", "failed", "-S", "loss.mix=none", fails=True)
    figures = project.figures()
    assert figures["workspace"] == {}
    assert "failed" not in figures
    assert "CSA" not in project.plots()
