"""What commands that compute nothing cost: processor seconds and peak memory, against fixed bounds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Result

SECONDS, MEBIBYTES = 1.0, 200
REPEATS = 3
CHEAP = (
    *(("cusa-extract", "--help"), ("cusa-store", "--help"), ("cusa-train", "--help"), ("cusa-eval", "--help")),
    *(("cusa-store", "info", "store"), ("cusa-train", "--show", "--run", "run")),
)
# A process starts out with its parent's peak, so a small one stands between: this one may hold gigabytes.
WATCH = """
import os, subprocess, sys
_, status, used = os.wait4(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def benchmark() -> list[Result]:
    """Measure each command on a small finished store and run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sizes = [f"-Sdata.scenes.{split}=64" for split in ("train", "val", "test")]
        _run(place, "cusa-extract", "--store", "store", *sizes)
        settings = ["-Strain.epochs=1", "-Strain.batch_size=32", "-Strain.compare=false"]
        _run(place, "cusa-train", "--store", "store", "--run", "run", *settings)
        return [_measure(place, *command) for command in CHEAP]


def _measure(place: Path, command: str, *arguments: str) -> Result:
    watched = [sys.executable, "-c", WATCH, script(command), *arguments]
    outputs = [subprocess.run(watched, cwd=place, stdout=subprocess.PIPE, check=True).stdout for _ in range(REPEATS)]
    taken = [map(float, output.split()) for output in outputs]
    seconds, peak = (statistics.median(values) for values in zip(*taken, strict=True))
    return Result(
        name=f"processor time of {' '.join((command, *arguments))} (peak memory {peak:.0f} of {MEBIBYTES} MiB)",
        ours=seconds,
        yardstick=SECONDS,
        unit="s",
        ratio=seconds / SECONDS,
        bound=f"≤ {SECONDS:.0f}",
        kept=seconds <= SECONDS and peak <= MEBIBYTES,
    )


def _run(place: Path, command: str, *arguments: str) -> None:
    subprocess.run([script(command), *arguments], cwd=place, check=True, capture_output=True)


def script(command: str) -> str:
    """Return the path of one of our commands, as it is installed beside this Python."""
    return str(Path(sys.executable).with_name(command))


if __name__ == "__main__":
    for result in benchmark():
        print(result)
