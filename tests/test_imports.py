"""What a command loads: the libraries that take seconds and gigabytes only where it uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stores import Store

HEAVY = [
    *("accelerate", "datasets", "dvclive", "faiss", "matplotlib", "open_clip", "ray", "scipy.stats", "skimage"),
    *("sentence_transformers", "sklearn", "timm", "torch", "torchvision", "transformers", "webdataset"),
]


def loaded(code: str, *arguments: str | Path) -> set[str]:
    """Return which of the heavy libraries a process has loaded after `code`, which may be a command."""
    told = f"print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    whole = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n{told}"
    command = [sys.executable, "-c", whole, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def loaded_by(module: str, *arguments: str | Path) -> set[str]:
    return loaded(f"from {module} import main; main()", *arguments)


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.inspection.cli", "train.cli", "train.eval_cli"])
def test_help_loads_none(module: str) -> None:
    assert loaded_by(module, "--help") == set()


def test_what_computes_nothing_loads_none(scenes_store: Store, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"infonce": {"image_to_text": {"R@1": 20.0}, "best_epoch": 3}}')
    assert loaded_by("train.cli", "--show", "--run", tmp_path) == set()
    assert loaded_by("pipeline.inspection.cli", "info", scenes_store.root) == set()


def test_indices_take_faiss_alone(scenes_store: Store) -> None:
    assert loaded_by("pipeline.inspection.cli", "verify", scenes_store.root) == {"faiss"}
    assert loaded_by("pipeline.inspection.cli", "neighbours", scenes_store.root, "--row", "3") == {"faiss"}


def test_families_of_teachers_and_students_load_when_they_are_asked_for() -> None:
    found = loaded("import pipeline.extract, pipeline.inspection.deep, train.evaluation.measure, train.run")
    assert "torch" in found
    assert not found & {"open_clip", "timm", "transformers", "sentence_transformers", "skimage", "scipy.stats", "ray"}
