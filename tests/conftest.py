"""Shared fixtures: one small store of scenes, extracted once a session with the embedded teachers."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from stores.commands import loading

with loading(stays=True):
    from accelerate.state import AcceleratorState

    from pipeline.cli import main as cusa_extract
    from pipeline.extract import extract
    from stores import ExtractParameters, Store
    from stores.images import decode_rgb
    from stores.parameters import Data, Extract, FeatureFile, Scenes

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def small_scenes(**changes: int) -> ExtractParameters:
    """Parameters for a small store of scenes in several shards."""
    scenes = {"train": 48, "val": 12, "test": 20, "pixels": 64, **changes}
    return ExtractParameters(data=Data(scenes=Scenes(**scenes)), extract=Extract(shard_size=16, workers=0))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pytest_collection() -> None:
    """Collect as commands load their libraries (stores.commands.loading)."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let no search for garbage look through libraries and tests: each training makes three."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """Let each test choose its device and precision: accelerate keeps the first choice of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="module")
def _fresh_accelerate_of_a_module() -> None:
    """The same for what a module makes once, which comes before its first test."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables as in a wide terminal, however the suite is run: pytest's own processes say 80 columns."""
    monkeypatch.setenv("COLUMNS", "160")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Let the first of the suite's processes to come fill a folder that all of them read; return it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        made = folder.with_name(f"{name}.made")
        if not made.exists():
            AcceleratorState._reset_state(reset_partial_state=True)
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def scenes_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished store of 80 scenes; tests must not change it."""
    folder = made_once(tmp_path_factory, "scenes", lambda folder: extract(small_scenes(), folder / "store"))
    return Store.open(folder / "store")


@pytest.fixture(scope="session")
def regions_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Scenes with 36 regions an image, the mean colours of a grid's fields and where they lie; not to be changed."""
    return Store.open(made_once(tmp_path_factory, "regions", _make_regions) / "store")


def _make_regions(folder: Path) -> None:
    extract(small_scenes(), folder / "store")
    bare = Store.open(folder / "store")
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 6), np.linspace(-1, 1, 6)), axis=-1)
    regions = []
    for row in range(len(bare.samples)):
        pixels = np.asarray(decode_rgb(bare.images[row]).resize((6, 6)), dtype=np.float32) / 255
        regions.append(np.concatenate([pixels, grid], axis=-1).reshape(36, 5))
    np.savez(folder / "regions.npz", boxes=np.stack(regions), id=np.array(bare.samples["source_id"].to_pylist()))
    file = FeatureFile(file=str(folder / "regions.npz"), array="boxes", key="id")
    small = small_scenes()
    extract(replace(small, data=replace(small.data, features={"regions": file})), folder / "store")


@pytest.fixture(scope="session")
def scenes_run(scenes_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch, with InfoNCE alone beside it; tests must not change it."""
    from stores import TrainParameters
    from stores.parameters import Student, Train
    from train.run import run

    train = Train(epochs=1, batch_size=16, device="cpu", precision="fp32")
    parameters = TrainParameters(train=train, student=Student(model="tiny_students:Weighing"))
    return made_once(tmp_path_factory, "trained", lambda folder: run(parameters, scenes_store, folder / "run")) / "run"


@pytest.fixture(scope="session")
def small_run(scenes_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the embedded student, which knows its training split; tests must not change it."""
    from stores import TrainParameters
    from stores.parameters import Train
    from train.run import run

    train = Train(epochs=20, batch_size=48, device="cpu", precision="fp32", compare=False)
    parameters = TrainParameters(train=train)
    return made_once(tmp_path_factory, "small", lambda folder: run(parameters, scenes_store, folder / "run")) / "run"


@pytest.fixture(scope="session")
def searched_store(scenes_store: Store, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of scenes with the features of that run beside the others; tests must not change it."""

    def add_the_run(folder: Path) -> None:
        path = folder / "store"
        shutil.copytree(scenes_store.root, path)
        before = {name: data for name, data in content(path).items() if name != "manifest.json"}
        result = CliRunner().invoke(cusa_extract, ["--store", str(path), "--teacher", f"run:{small_run}"])
        assert result.exit_code == 0, result.output
        assert content(path).items() >= before.items(), "what was there stays as it was"

    return Store.open(made_once(tmp_path_factory, "searched", add_the_run) / "store")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real pictures and sentence pairs; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real pictures and sentence pairs in ../shared/data, which are not part of the project")
    return SHARED
