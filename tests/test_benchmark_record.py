"""Benchmarks keep what they found: a failure costs its own figures alone, and no file of a person's is written over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import __main__ as bench
from benchmarks import assignment, device_checks, device_times, gpu
from benchmarks.device_times import Time
from benchmarks.record import Record


def breaks_off(*given: Any) -> Iterator[Time]:
    yield Time(name="the first half", value=1.0, unit="s")
    raise torch.OutOfMemoryError("no room")


def test_a_measurement_that_fails_costs_its_own_figures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> device_checks.Check:
        raise torch.OutOfMemoryError("no room")

    def unsound(device: torch.device) -> device_checks.Check:
        return device_checks.Check.within("unsound", float("nan"), 1.0)

    monkeypatch.setattr(device_checks, "CHECKS", (fails, device_checks.rankings, unsound))
    monkeypatch.setattr(device_times, "MEASURES", (breaks_off, device_times.tiled_objective))
    report = tmp_path / "gpu.json"
    ended = CliRunner().invoke(gpu.main, ["--device", "cpu", "--small", "--report", str(report)])
    assert ended.exit_code == 1
    said = ended.output.splitlines()
    assert "cpu computes otherwise than the processor: unsound." in said
    for name in ("fails", "breaks_off"):
        assert said.count(f"{name} failed: OutOfMemoryError: no room") == 2  # as it happens, and at the end
    written = json.loads(report.read_text())
    assert [(check["name"][:8], check["kept"]) for check in written["checks"]] == [
        ("rankings", True),
        ("unsound", False),
    ]
    assert [taken["name"][:9] for taken in written["times"]] == ["the first", "objective"]
    message = "OutOfMemoryError: no room"
    assert written["failures"] == [{"name": name, "message": message} for name in ("fails", "breaks_off")]
    assert written["complete"]
    assert {"device", "driver", "torch", "CUDA", "torchvision", "faiss", "cores"} <= written["machine"].keys()


def test_bench_goes_on_and_names_what_failed_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ValueError("no room")

    given = (("broken", fails), ("absent", lambda: None), ("assignment", assignment.benchmark))
    monkeypatch.setattr(bench, "BENCHMARKS", given)
    monkeypatch.setattr(bench, "REPORT", tmp_path / "benchmarks.json")
    with pytest.raises(SystemExit, match="broken failed: ValueError: no room"):
        bench.main()
    assert "Left out: absent, which need" in capsys.readouterr().out
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [result["yardstick"] > 0 for result in written["results"]] == [True]
    assert written["failures"] == [{"name": "broken", "message": "ValueError: no room"}]


def test_what_is_measured_lies_on_disk_at_once(tmp_path: Path) -> None:
    record, path = Record(tmp_path / "r.json", {"device": "cpu"}, "times"), tmp_path / "r.json"

    def looks() -> Iterator[Time]:
        yield Time(name="one", value=1.0, unit="s")
        written = json.loads(path.read_text())
        assert [taken["name"] for taken in written["times"]] == ["one"]
        assert not written["complete"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.keep("times", "looks", looks)
    assert len(json.loads(path.read_text())["times"]) == 1
    Record(path, {}, "times")  # its own file may be replaced


def test_a_person_s_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"times": [1, 2, 3]}')
    ended = CliRunner().invoke(gpu.main, ["--device", "cpu", "--small", "--report", str(path)])
    assert (ended.exit_code, "is not overwritten" in ended.output) == (1, True)
    assert path.read_text() == '{"times": [1, 2, 3]}'


def test_an_index_that_no_gpu_built_is_not_kept_where_one_was_asked_for() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which may build it")
    checked = device_checks.index(torch.device("cuda"))
    assert (checked.name.partition(":")[0], checked.kept) == ("index built on cpu", False)
    assert checked.difference <= checked.tolerance


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:13:20 UTC 2025\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)\n",
    ],
    ids=["closed", "open"],
)
def test_the_driver_s_version_is_read_from_the_kernel(line: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(line)
    assert gpu.driver_version(tmp_path / "version") == "580.65.06"
    assert gpu.driver_version(tmp_path / "absent") is None
