"""Long proofs, run by `make soak`: stage 1 killed at random moments ends in the store of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stores import Store

CHECKOUT = Path(__file__).resolve().parents[1]
SCENES = ["-S", "data.scenes={train: 400, val: 30, test: 50}", "-S", "extract.shard_size=64"]


def start(store: Path) -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from pipeline.cli import main; main()"
    arguments = [sys.executable, "-c", code, "--store", str(store), "--params", str(CHECKOUT / "params.yaml"), *SCENES]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.soak
def test_killed_at_twenty_moments_the_store_is_byte_identical(tmp_path: Path) -> None:
    started = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole_seconds = time.monotonic() - started
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        run = start(tmp_path / "cut")
        try:
            # Short enough that even the last runs, which find most of the work done, are usually killed.
            run.wait(timeout=moments.uniform(0.2, 0.8) * whole_seconds)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
        else:
            assert run.returncode == 0
            for path in (tmp_path / "cut").rglob("*.h5"):
                if moments.random() < 0.5:
                    path.unlink()
    assert start(tmp_path / "cut").wait() == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(Store.open(tmp_path / "cut").samples) == 480
