"""What our commands tell OpenMP before torch is loaded, and that a person's own word stands above it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stores import cores
from stores.commands import resumable

VARIABLES = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("own", "quota", "expected"),
    [
        pytest.param({}, "max 100000", {"GOMP_SPINCOUNT": "3000"}, id="free"),
        pytest.param({}, "50000 100000", {"GOMP_SPINCOUNT": "3000", "OMP_NUM_THREADS": "1"}, id="half-a-core"),
        pytest.param({}, "190000 100000", {"GOMP_SPINCOUNT": "3000", "OMP_NUM_THREADS": "1"}, id="not-quite-two"),
        pytest.param({}, None, {"GOMP_SPINCOUNT": "3000"}, id="no-control-groups"),
        pytest.param({"OMP_WAIT_POLICY": "ACTIVE"}, None, {"OMP_WAIT_POLICY": "ACTIVE"}, id="own-policy"),
        pytest.param(
            {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"},
            "100000 100000",
            {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"},
            id="own-numbers",
        ),
    ],
)
def test_threads_yield_unless_a_person_said_otherwise(
    own: dict[str, str], quota: str | None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    try:
        with resumable():
            assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == expected
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)


def test_studies_yield_before_they_load_torch() -> None:
    code = "import os, sys, experiments; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3000", "False"]
