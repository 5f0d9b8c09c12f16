"""Killed, crowded, cut off or written to at the same time: a store loses nothing, and takes nothing half for whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_teachers
import torch
from click.testing import CliRunner
from conftest import content, small_scenes
from interrupted import finish, kill_until_whole, start
from PIL import Image
from refusals import refused

import stores.lock
from pipeline.extract import extract
from pipeline.feature_sets import FeatureSets
from pipeline.inspection.cli import main
from stores import CusaError, ExtractParameters, ParameterError, Store, StoreError, TeacherError
from stores.commands import resumable
from stores.errors import DamagedStoreError
from stores.layout import Layout
from stores.lock import write_lock
from stores.manifest import withdraw_manifest
from stores.parameters import Data, Extract, Teachers

TINY = ["--image-teacher", "tiny_teachers:mean_colour", "--text-teacher", "tiny_teachers:length"]


def small(**settings: Any) -> ExtractParameters:
    given = small_scenes()
    teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")
    return replace(given, teachers=teachers, extract=replace(given.extract, **settings))


def test_killed_at_eight_moments_the_store_is_byte_identical(tmp_path: Path) -> None:
    scenes = [
        "-S",
        "data.scenes={train: 500, val: 50, test: 50}",
        "-S",
        "extract.shard_size=50",
        "-S",
        "extract.window=50",
    ]
    whole, cut = kill_until_whole(tmp_path, 8, *TINY, *scenes)
    assert content(cut) == content(whole)
    assert len(Store.open(cut).samples) == 600


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 KB; the test is skipped where one cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a small file system: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def _message(store: Path) -> str | None:
    """Run stage 1 and return how it ended, if not well."""
    try:
        with resumable():
            extract(small(), store)
    except CusaError as error:
        return str(error.message)
    return None


def test_a_full_disk_is_one_message_and_nothing_half_is_taken_for_whole(disk: Path, tmp_path: Path) -> None:
    """The disk grows by 60 KB until the store fits, so that it is full at one stage after another."""
    stages = set()
    for kilobytes in range(300, 4000, 60):
        remount(disk, f"size={kilobytes}k")
        message = _message(disk / "store")
        if message is None:
            break
        assert "No space left on device" in message
        assert "What is finished is kept" in message
        assert not Layout(disk / "store").manifest.exists()
        stages.add(tuple(sorted({path.parent.name for path in (disk / "store").rglob("*") if path.is_file()})))
    extract(small(), tmp_path / "roomy")
    assert content(disk / "store") == content(tmp_path / "roomy")
    assert len(stages) >= 3, stages


def test_a_store_that_cannot_be_written_is_one_message(disk: Path) -> None:
    remount(disk, "size=20m")
    extract(small(), disk / "store")
    before = content(disk)
    remount(disk, "ro")
    with pytest.raises(CusaError, match="Read-only file system"), resumable():
        extract(small(), disk / "store")
    with pytest.raises(StoreError, match=r"cannot be written: Read-only file system\. Choose another with --store"):
        extract(small(), disk / "other")
    assert content(disk) == before


def test_two_runs_at_once_on_one_store_are_kept_apart(tmp_path: Path) -> None:
    extract(small(), tmp_path)
    before = content(tmp_path)
    with write_lock(Layout(tmp_path)):
        second = start(tmp_path, *TINY)
        _, errors = second.communicate(timeout=300)
    assert second.returncode == 2
    assert f"process {os.getpid()} on host {socket.gethostname()} holds store.lock" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert content(tmp_path) == before


def test_the_lock_of_a_dead_run_is_taken_over_but_another_machine_s_is_not(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from stores.layout import Layout
from stores.lock import write_lock
from stores.manifest import withdraw_manifest
with write_lock(Layout(Path({str(tmp_path)!r}))):
    print("held", flush=True)
    time.sleep(100)
"""
    extract(small(), tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert Layout(tmp_path).lock.exists()
    extract(small(), tmp_path)
    assert not Layout(tmp_path).lock.exists()
    Layout(tmp_path).lock.write_text("17\nelsewhere\n")
    with pytest.raises(
        StoreError, match=r"process 17 on host elsewhere holds store\.lock.*If that machine has died, delete"
    ):
        extract(small(), tmp_path)


def test_an_image_that_changes_after_it_was_read_shows_in_the_next_run(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\n" + "".join(f"{number}.png,picture {number}\n" for number in range(6)))
    given = ExtractParameters(
        data=Data(source=str(table)),
        teachers=Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length"),
        extract=Extract(shard_size=3, workers=0),
    )
    extract(given, tmp_path / "store")
    before = (tmp_path / "1.png").read_bytes()
    for red in range(6, 200):
        Image.new("RGB", (9, 9), (red, 0, 0)).save(tmp_path / "1.png")
        if (tmp_path / "1.png").stat().st_size == len(before):
            break
    assert len((tmp_path / "1.png").read_bytes()) == len(before)
    assert (tmp_path / "1.png").read_bytes() != before
    again = extract(given, tmp_path / "store")
    assert set(again.made) >= {"shards/train-000000", "features/tiny_teachers-mean_colour/train-000000"}
    assert "shards/train-000001" not in again.made
    store = Store.open(tmp_path / "store")
    assert store.images[1] == (tmp_path / "1.png").read_bytes()


def test_what_was_rejected_is_tried_again_on_request(tmp_path: Path) -> None:
    """A picture that could not be read for a moment; its file has the same size and time as before."""
    for number in range(4):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\n" + "".join(f"{number}.png,picture {number}\n" for number in range(4)))
    flags = ["--source", str(table), *TINY, "-S", "data.max_bad_fraction=0.5", "-S", "extract.shard_size=2"]
    good = (tmp_path / "2.png").read_bytes()
    times = (tmp_path / "2.png").stat()
    (tmp_path / "2.png").write_bytes(b"?" * len(good))
    os.utime(tmp_path / "2.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "unreadable-image 1" in finish(start(tmp_path / "store", *flags))
    opened = Store.open(tmp_path / "store")
    (tmp_path / "2.png").write_bytes(good)
    os.utime(tmp_path / "2.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "nothing to do" in finish(start(tmp_path / "store", *flags))
    done = CliRunner().invoke(main, ["retry", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert "1 were in quarantine, 0 still are; the store has 1 more sample." in done.output
    assert opened.images[0] == (tmp_path / "0.png").read_bytes(), "of a shard that stayed"
    with refused(DamagedStoreError, path=Layout(tmp_path / "store").shard("train-000001")):
        opened.images[2]
    assert Store.open(tmp_path / "store").samples["source_id"].to_pylist() == ["0", "1", "2", "3"]


def test_a_teacher_of_an_earlier_run_survives_a_stopped_one(tmp_path: Path) -> None:
    other = replace(small(), teachers=Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e"))
    extract(small(), tmp_path)
    extract(other, tmp_path)
    whole = content(tmp_path)
    layout = Layout(tmp_path)
    # What a run leaves that was killed while it repaired a shard.
    withdraw_manifest(layout)
    layout.shard("train-000001").unlink()
    extract(other, tmp_path)
    assert content(tmp_path) == whole
    assert "tiny_teachers-length" in Store.open(tmp_path).manifest.teachers


def test_a_teacher_s_other_parts_are_kept_when_one_is_damaged(tmp_path: Path) -> None:
    other = replace(small(), teachers=Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e"))
    extract(small(), tmp_path)
    parts = sorted((tmp_path / "features" / "tiny_teachers-length").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    extract(other, tmp_path)
    assert "tiny_teachers-length" not in Store.open(tmp_path).manifest.teachers
    again = extract(small(), tmp_path)
    assert [name for name in again.made if name.startswith("features")] == [
        f"features/tiny_teachers-length/{parts[0].stem}"
    ]


def test_a_damaged_part_is_known_as_ours_wherever_its_repair_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(small(), tmp_path)
    whole = content(tmp_path)
    part = next((tmp_path / "features" / "tiny_teachers-length").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    withdraw = FeatureSets._withdraw

    def killed(sets: FeatureSets, slug: str) -> None:
        withdraw(sets, slug)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FeatureSets, "_withdraw", killed)
        extract(small(), tmp_path)
    extract(small(), tmp_path)
    assert content(tmp_path) == whole


def test_a_former_manifest_goes_though_nothing_else_is_to_do(tmp_path: Path) -> None:
    """A run may be killed right after it has written the new one."""
    extract(small(), tmp_path)
    whole, layout = content(tmp_path), Layout(tmp_path)
    layout.former_manifest.write_bytes(layout.manifest.read_bytes())
    extract(small(), tmp_path)
    assert content(tmp_path) == whole


def test_another_machine_keeps_the_precision_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made where the processor multiplies in bf16, gone on with where it does not; stopped, nothing is lost."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    extract(small(), tmp_path)
    whole, layout = content(tmp_path), Layout(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not extract(small(), tmp_path).made
    assert "tiny_teachers:length stays in bf16" in " ".join(capsys.readouterr().err.split())
    layout.manifest.unlink()
    layout.features("tiny_teachers-length", "test-000000").unlink()
    extract(small(), tmp_path)
    assert content(tmp_path) == whole

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiny_teachers.MeanColour, "forward", stopped)
        extract(small(precision="fp32"), tmp_path)
    left = content(tmp_path)
    assert {name for name in whole if name.endswith(".h5")} <= left.keys(), "none goes before its successor is there"
    extract(small(), tmp_path)
    assert content(tmp_path) == whole


def test_two_teachers_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_teachers\u00e9.py").write_text("from tiny_teachers import length as mean_colour\n")
    monkeypatch.syspath_prepend(tmp_path)
    twins = replace(
        small(), teachers=Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers\u00e9:mean_colour")
    )
    with pytest.raises(TeacherError, match="would share the folder features/tiny_teachers-mean_colour"):
        extract(twins, tmp_path / "store")


def test_an_empty_lock_and_an_unfinished_mark_hold_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "store.txt.tmp-77").touch()
    extract(small(), tmp_path)
    Layout(tmp_path).lock.touch()
    extract(small(), tmp_path)
    assert not Layout(tmp_path).lock.exists()


def test_of_two_that_find_an_empty_lock_one_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both come to remove it at once, and the second is late: by then the first one's own lies there."""
    monkeypatch.setattr(stores.lock, "_PATIENCE", 0.2)
    path, remove = tmp_path / "store.lock", Path.unlink
    path.touch()
    met, held, most = threading.Barrier(2), threading.Event(), []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self == path and not held.is_set():
            with contextlib.suppress(threading.BrokenBarrierError):
                if met.wait(1):
                    held.wait(1)
        remove(self, missing_ok)

    def hold() -> None:
        with contextlib.suppress(StoreError), stores.lock.lock_held(path, tmp_path, "--store", StoreError):
            most.append(1)
            held.set()
            time.sleep(0.6)
            most.pop()
            counts.append(len(most))

    counts: list[int] = []
    monkeypatch.setattr(Path, "unlink", unlink)
    runs = [threading.Thread(target=hold) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert counts == [0]


def test_a_folder_with_a_file_of_the_mark_s_name_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store.txt").write_text("my shops")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "precious.tar").write_bytes(b"mine")
    before = content(tmp_path)
    with pytest.raises(StoreError, match="is not empty and no store of ours"):
        extract(small(), tmp_path)
    assert content(tmp_path) == before


def test_a_store_is_not_made_of_itself(tmp_path: Path) -> None:
    store, link = tmp_path / "store", tmp_path / "link"
    extract(small(), store)
    link.symlink_to(store)
    before = content(store)
    with pytest.raises(ParameterError, match=r"data\.source: the store itself.*Choose another place with --store"):
        extract(replace(small(), data=Data(source=str(link), format="store")), store)
    assert content(store) == before


def test_what_was_repaired_is_said(tmp_path: Path) -> None:
    finish(start(tmp_path, *TINY, "-S", "data.scenes={train: 20, val: 4, test: 4}"))
    (tmp_path / "features" / "tiny_teachers-length" / "test-000000.h5").unlink()
    said = finish(start(tmp_path, *TINY, "-S", "data.scenes={train: 20, val: 4, test: 4}"))
    assert "features/tiny_teachers-length/test-000000 (missing)" in said
