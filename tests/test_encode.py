"""Encoding: equal contents once, batches that depend on nothing but the store, several processes, a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny_teachers
import torch
from conftest import content, small_scenes
from interrupted import finish, start
from PIL import Image

from models import batch_loader
from models.teachers import TeacherSpec, load_teacher
from pipeline.encode import encoder, extraction
from pipeline.encode.windows import Job, plan_windows
from pipeline.extract import extract
from pipeline.first_seen import first_seen
from stores import ExtractParameters, Store, TeacherError
from stores.layout import Layout
from stores.parameters import Data, Extract, Teachers

CHECKOUT = Path(__file__).resolve().parents[1]


def parameters(image: str = "tiny_teachers:mean_colour", text: str = "tiny_teachers:length", **settings: object):
    scenes = small_scenes()
    chosen = replace(scenes.extract, **settings)
    return replace(scenes, teachers=Teachers(image=image, text=text), extract=chosen)


@pytest.fixture
def repeating(tmp_path: Path) -> Data:
    """Ninety pictures in nine kinds, each with two captions of which there are thirty."""
    for number in range(90):
        Image.new("RGB", (8, 8), (20 * (number % 9), 50, 90)).save(tmp_path / f"{number}.png")
    entries = [
        {
            "filename": f"{number}.png",
            "split": "train" if number < 60 else "test",
            "sentences": [{"raw": "abc" * (number % 30 + 1)}, {"raw": "de" * (number % 15 + 1)}],
        }
        for number in range(90)
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    return Data(source=str(path))


@pytest.mark.parametrize("window", [1, 25, 10_000])
def test_equal_contents_are_encoded_once_over_the_whole_store(repeating: Data, tmp_path: Path, window: int) -> None:
    tiny_teachers.Counting.seen.clear()
    tiny_teachers.Small.seen.clear()
    given = ExtractParameters(
        data=repeating,
        teachers=Teachers(image="tiny_teachers:small", text="tiny_teachers:counting"),
        # In bf16 a few rows more would be encoded, to see how near to fp32 it is.
        extract=Extract(shard_size=7, workers=0, window=window, image_batch=4, text_batch=4, precision="fp32"),
    )
    extract(given, tmp_path / "store")
    assert sum(tiny_teachers.Counting.seen) == 45
    assert sum(tiny_teachers.Small.seen) == 9
    store = Store.open(tmp_path / "store")
    teacher = tiny_teachers.length(None, "cpu", "fp32")
    texts = store.captions["text"].to_pylist()
    expected = np.stack([teacher.preprocess(text).numpy() for text in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(store.features("tiny_teachers-counting").gather(np.arange(180)), expected, atol=1e-3)
    colours = store.features("tiny_teachers-small").gather(np.arange(90))
    digests = store.samples["image_sha256"].to_pylist()
    assert len({(digest, row.tobytes()) for digest, row in zip(digests, colours, strict=True)}) == 9


def test_texts_are_batched_by_length_over_shards(tmp_path: Path) -> None:
    lengths: list[list[int]] = []

    class Watching(tiny_teachers.Counting):
        def collate(self, items: list) -> object:
            lengths.append([self.length(item) for item in items])
            return super().collate(items)

    given = parameters(text="tiny_teachers:watching", shard_size=5, text_batch=10)
    tiny_teachers.watching = lambda **named: Watching(  # type: ignore[attr-defined]
        spec="tiny_teachers:watching", dim=26, precision="fp32", device=named["device"], identity=None
    )
    extract(given, tmp_path)
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)
    assert len(lengths) == -(-len(flat) // 10)


@pytest.mark.parametrize("window", [20, 10_000])
def test_parts_made_again_are_the_same_bytes(tmp_path: Path, window: int) -> None:
    """With the real teachers, whose rounding depends on the batch: any of the parts may be lost."""
    given = parameters("hog-color", "minilm", window=window, text_batch=16, image_batch=6)
    extract(given, tmp_path)
    whole = content(tmp_path)
    parts = sorted(tmp_path.glob("features/*/*.h5"))
    assert len(parts) == 2 * len(list(tmp_path.glob("shards/*.tar"))) > 0
    for lost in (parts[::2], parts[1::3], parts[:1]):
        for path in lost:
            path.unlink()
        again = extract(given, tmp_path)
        assert len(again.made) >= len(lost)
        assert content(tmp_path) == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_out_of_memory_halves_the_batch_and_loses_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    tiny_teachers.Small.seen.clear()
    extract(parameters("tiny_teachers:small", image_batch=32, precision=precision), tmp_path / "small")
    extract(parameters(image_batch=32, precision=precision), tmp_path / "whole")
    small, whole = (Store.open(tmp_path / name) for name in ("small", "whole"))
    rows = np.arange(80)
    kept = small.features("tiny_teachers-small").gather(rows)
    np.testing.assert_array_equal(kept, whole.features("tiny_teachers-mean_colour").gather(rows))
    assert max(tiny_teachers.Small.seen) == 8
    assert "memory" in capsys.readouterr().err


def test_two_processes_make_the_same_store(tmp_path: Path) -> None:
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        extract(parameters("hog-color", "minilm", device=device, window=20, workers=1), tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_process_that_dies_or_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"encodes on cpu was lost \(exit code -9\)"):
        extract(parameters("tiny_teachers:fatal", device="cpu,cpu", window=20), tmp_path)
    with pytest.raises(TeacherError, match="has nothing callable named 'absent'"):
        extract(parameters("tiny_teachers:absent", device="cpu,cpu"), tmp_path)
    with pytest.raises(TeacherError, match=r"The devices load tiny_teachers:unlike differently \(fingerprints"):
        extract(parameters("tiny_teachers:unlike", device="cpu,cpu"), tmp_path)
    extract(parameters(window=20), tmp_path)
    assert len(Store.open(tmp_path).samples) == 80


def test_a_lost_process_ends_the_run_though_a_pipe_is_full(tmp_path: Path) -> None:
    """Windows of 8,000 rows are more than a pipe holds: somebody still waits to write when the reader is gone."""
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    with (tmp_path / "pairs.jsonl").open("w") as stream:
        for number in range(48):
            captions = [f"caption {number} {place}" for place in range(1000)]
            stream.write(json.dumps({"id": str(number), "image": "picture.png", "caption": captions}) + "\n")
    flags = ["--image-teacher", "tiny_teachers:mean_colour", "--text-teacher", "tiny_teachers:fatal_text"]
    sizes = ["-S", "extract.window=8000", "-S", "extract.shard_size=8", "-S", "extract.device=cpu,cpu"]
    run = start(tmp_path / "store", "--source", str(tmp_path / "pairs.jsonl"), *flags, *sizes)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 2, errors
    assert "was lost (exit code -9)" in " ".join(errors.split())
    assert "Traceback" not in errors


def test_what_is_decoded_ahead_is_bounded_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[int] = []

    class Watched(batch_loader.DataLoader):  # type: ignore[type-arg]
        def __init__(self, *given: Any, prefetch_factor: int, **settings: Any) -> None:
            ahead.append(prefetch_factor)
            super().__init__(*given, prefetch_factor=prefetch_factor, **settings)

    monkeypatch.setattr(batch_loader, "DataLoader", Watched)
    given = parameters(workers=1, image_batch=8)
    extract(given, tmp_path / "one")
    # A batch is 8 rows of 3 float32, and two windows are in hand; of the features of two shards a window is made.
    monkeypatch.setattr(encoder, "_PREFETCHED_BYTES", 2 * 2 * 8 * 12)
    monkeypatch.setattr(extraction, "_WINDOW_BYTES", 20 * 3 * 2)
    extract(given, tmp_path / "other")
    assert ahead == [4, 2, 2, 2]
    assert content(tmp_path / "one") == content(tmp_path / "other")


@pytest.mark.parametrize(
    ("workers", "device", "models", "expected"),
    [
        pytest.param(None, "cuda", 1, 16, id="one-gpu"),
        pytest.param(None, "cuda", 3, 5, id="three-gpus"),
        pytest.param(None, "cuda", 32, 1, id="more-gpus-than-cores"),
        pytest.param(None, "cpu", 1, 2, id="processor"),
        pytest.param(3, "cuda", 8, 3, id="given"),
        pytest.param(0, "cuda", 1, 0, id="none"),
    ],
)
def test_decoding_has_the_cores_that_there_are_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, device: str, models: int, expected: int
) -> None:
    monkeypatch.setattr(encoder, "usable_cores", lambda: 16)
    assert encoder.decoding_processes(Extract(workers=workers), torch.device(device), models) == expected


def test_no_more_processes_decode_than_shared_memory_has_room_for() -> None:
    assert encoder.processes_that_fit(1) > 1000
    assert encoder.processes_that_fit(10**18) == 1


def test_an_actor_s_windows_take_turns_on_its_model(tmp_path: Path) -> None:
    """Two are in its hands, each on a thread, and a model may keep what it computes with (open_clip's mask)."""
    pytest.importorskip("ray")
    from pipeline.encode.ray_engine import _Actor

    given = parameters()
    extract(given, tmp_path)
    shards = Store.open(tmp_path).manifest.shards
    actor = _Actor([TeacherSpec(spec="tiny_teachers:alone", weights=None, modality="text")], given.extract, "cpu")
    job = Job(layout=Layout(tmp_path), shards=shards, batch_size=8)
    with first_seen(tmp_path) as seen:
        windows = list(plan_windows(shards, {shard.name for shard in shards}, "caption", 20, job.layout, seen))
    with ThreadPoolExecutor(2) as threads:
        encoded = list(threads.map(lambda window: actor.encode(0, job, window), windows))
    assert sum(len(some.rows) for some in encoded) > 0


def test_a_ray_cluster_makes_the_same_store_though_an_actor_is_lost(tmp_path: Path) -> None:
    """Two actors on a real local cluster; one is killed while it works.

    The images' teacher is the package's; that of texts would be loaded by three actors, for seconds each.
    """
    pytest.importorskip("ray")
    flags = ["--text-teacher", "tiny_teachers:length", "-S", "data.scenes={train: 300, val: 20, test: 20}"]
    flags += ["-S", "extract.shard_size=20", "-S", "extract.window=20"]
    finish(start(tmp_path / "local", *flags))
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "--params", "/dev/null", *flags]
    paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "RAY_ADDRESS": "local"}
    store = tmp_path / "ray"
    run = subprocess.Popen(
        [*command, "--store", str(store), "--engine", "ray"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    killed = _kill_an_actor(run, store / "features")
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert killed
    assert content(store) == content(tmp_path / "local")


def _kill_an_actor(run: subprocess.Popen[str], features: Path) -> list[int]:
    """Wait until parts appear, then kill one of the run's actor processes."""
    deadline = time.monotonic() + 200
    while run.poll() is None and time.monotonic() < deadline:
        actors = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"ray::_Actor" in _read(path) and _belongs(int(path.parent.name), run.pid)
        ]
        if len(actors) >= 2 and list(features.glob("*/*.h5")):
            os.kill(actors[0], signal.SIGKILL)
            return actors[:1]
        time.sleep(0.02)
    return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _belongs(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        fields = _read(Path(f"/proc/{process}/stat")).rpartition(b")")[2].split()
        process = int(fields[1]) if fields else 0
    return process == ancestor


def test_photographs_are_decoded_by_threads_as_without(tmp_path: Path) -> None:
    """A student's transform is torch's own; one file in between is damaged, others are no plain JPEGs."""
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
        pixels.save(tmp_path / f"{number}.jpg", "PNG" if number % 7 == 3 else "JPEG")
    data = (tmp_path / "5.jpg").read_bytes()
    (tmp_path / "5.jpg").write_bytes(data[:900] + bytes(40) + data[940:])
    listed = [{"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"a {n}"}]} for n in range(40)]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w.pth")
    teachers = Teachers(image="timm:test_vit", image_weights=str(tmp_path / "w.pth"), text="tiny_teachers:length")
    given = ExtractParameters(data=Data(source=str(tmp_path / "dataset.json")), teachers=teachers)
    found = []
    for workers in (0, 2):
        settings = Extract(shard_size=9, image_batch=8, precision="fp32", device="cpu", workers=workers)
        extract(replace(given, extract=settings), tmp_path / f"store-{workers}")
        found.append(Store.open(tmp_path / f"store-{workers}").features("timm-test_vit"))
    assert load_teacher("timm:test_vit", str(tmp_path / "w.pth"), device="cpu").decodes_in_threads
    rows = np.arange(40)
    assert found[0].valid.tolist() == found[1].valid.tolist()
    assert found[0].valid.sum() >= 39
    assert np.array_equal(found[0].gather(rows), found[1].gather(rows))
