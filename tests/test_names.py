"""Tests' names: each process that collects the suite finds the same ones, whatever its clock and its hashes say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COLLECT = """
import sys, time
clock, days = time.time, float(sys.argv[1])
time.time = lambda: clock() + 86_400 * days
time.sleep(1.1 if days else 0)  # for clocks that are read otherwise
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""


def collected(*sides: tuple[str, str], tests: str = "tests", cwd: Path = Path(__file__).parents[1]) -> list[list[str]]:
    """Return the tests' names as processes of other days and other seeds of `hash` find them, side by side."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COLLECT, days, tests],
            cwd=cwd,
            env={**inherited, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for days, seed in sides
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), outputs
    return [[line for line in output.splitlines() if "::" in line] for output in outputs]


def test_names_are_given_by_hand(request: pytest.FixtureRequest) -> None:
    """What this very process collected is found by another one, too, which collects all."""
    (later,) = collected(("200", "2"))
    assert len(later) > 1000
    assert not {item.nodeid for item in request.session.items} - set(later)
    assert len(set(later)) == len(later)
    values = [match[1] for name in later if (match := re.search(r"\[(.*)\]$", name))]
    odd = [value for value in values if len(value) > 60 or not value.isascii() or "\\" in value]
    assert not odd, "name them by ids=: long, escaped or not ASCII"


def test_names_of_the_time_and_of_hashes_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "test_drawn.py").write_text(
        "import gzip, pytest\n"
        "@pytest.mark.parametrize('data', [gzip.compress(b'x')])\n"
        "def test_timed(data): ...\n"
        "@pytest.mark.parametrize('word', {f'w{n}' for n in range(40)})\n"
        "def test_hashed(word): ...\n"
    )
    today, later = collected(("0", "1"), ("200", "2"), tests="test_drawn.py", cwd=tmp_path)
    assert len(today) == len(later) == 41
    assert {name for name in today if "timed" in name} != {name for name in later if "timed" in name}
    assert today[1:] != later[1:]
