"""Training the embedded student beside a busy process, and alone: what waiting threads that give up their core do."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.commands import script
from benchmarks.measure import Result

ALONE, BESIDE = 0.9, 500
PICTURES, EPOCHS = 600, 2
OPENMP = {"GOMP_SPINCOUNT": "300000"}
"""What GNU's OpenMP does by itself."""


def benchmark() -> list[Result]:
    """Measure pairs a second, each in a process of its own, without any setting of the caller's."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sizes = (f"-Sdata.scenes={{train: {PICTURES}, val: 40, test: 40}}",)
        subprocess.run([script("cusa-extract"), "--store", "store", *sizes], cwd=place, check=True, capture_output=True)
        ours, usual = _rate(place, "ours", {}), _rate(place, "usual", OPENMP)
        with _neighbour():
            beside = _rate(place, "beside", {})
    what = "train the embedded student"
    return [
        Result(
            name=f"{what}, alone, against OpenMP's usual waiting",
            ours=ours,
            yardstick=usual,
            unit="pairs/s",
            ratio=ours / usual,
            bound=f"≥ {ALONE}",
            kept=ours >= ALONE * usual,
        ),
        Result(
            name=f"{what} beside one busy process, against alone",
            ours=beside,
            yardstick=ours,
            unit="pairs/s",
            ratio=beside / ours,
            bound=f"≥ {BESIDE} pairs/s",
            kept=beside >= BESIDE,
        ),
    ]


def _rate(place: Path, run: str, settings: dict[str, str]) -> float:
    """Return the last epoch's pairs a second, of a run of its own; the first epoch makes the pictures' tensors."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [script("cusa-train"), "--store", "store", "--run", run]
    settings_of_run = [f"-Strain.epochs={EPOCHS}", "-Strain.compare=false"]
    subprocess.run([*command, *settings_of_run], cwd=place, env=own | settings, check=True, capture_output=True)
    with (place / run / "epochs.csv").open() as stream:
        return float(list(csv.DictReader(stream))[-1]["samples_per_second"])


@contextmanager
def _neighbour() -> Iterator[None]:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


if __name__ == "__main__":
    for result in benchmark():
        print(result)
