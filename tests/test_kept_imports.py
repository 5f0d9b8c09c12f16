"""Imported features over several runs: what is kept, gone on with or made anew, whatever became of file and samples."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import content
from PIL import Image
from test_features_import import TINY

from pipeline.extract import Extracted, extract
from pipeline.imports import FeatureImport
from pipeline.imports.importing import _names
from pipeline.ingest import Ingested, ingest
from pipeline.inspection.verify import verify
from stores import ExtractParameters, ParameterError, SourceError, Store, load_parameters
from stores.digests import file_digest, value_digest
from stores.layout import Layout
from stores.parameters import Data, Extract, FeatureFile

BROKEN = b"no picture"
NAMES = [*(f"{number}.png" for number in range(11)), "caf\u00e9.png"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of twelve pictures in a CSV, two of them broken, and of the store of them, in shards of four."""
    folder = tmp_path_factory.mktemp("listed")
    rows = [f"{name},picture {number},{name}" for number, name in enumerate(NAMES)]
    (folder / "pairs.csv").write_text("\n".join(["image,caption,id", *rows]), encoding="utf-8")
    for number, name in enumerate(NAMES):
        Image.new("RGB", (9, 9), (20 * number, 90, 9)).save(folder / name)
    for name in (NAMES[9], NAMES[11]):
        (folder / name).write_bytes(BROKEN)
    run(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, with the numbers of its ten samples in u.npy."""
    copied = shutil.copytree(made, tmp_path / "listed")
    np.save(copied / "u.npy", numbers(10))
    return copied


def numbers(rows: int) -> np.ndarray:
    return np.arange(1, rows + 1, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)


def run(folder: Path, *, retry: bool = False, teachers: Any = TINY, **features: FeatureFile) -> Extracted:
    data = Data(source=str(folder / "pairs.csv"), max_bad_fraction=0.9, features=features)
    settings = Extract(shard_size=4, workers=0)
    return extract(ExtractParameters(data=data, teachers=teachers, extract=settings), folder / "store", retry=retry)


def in_order(folder: Path) -> FeatureFile:
    return FeatureFile(file=str(folder / "u.npy"))


def copied(done: Extracted) -> list[str]:
    return [name for name in done.made if name.startswith("features/u/")]


def test_rows_that_move_to_other_samples_are_copied_anew(folder: Path) -> None:
    """The first shard loses a sample and the last gains one: of the one between, only what comes before it changes."""
    run(folder, u=in_order(folder))
    (folder / NAMES[1]).write_bytes(BROKEN)
    shutil.copy(folder / NAMES[0], folder / NAMES[9])
    done = run(folder, retry=True, u=in_order(folder))
    assert done.made["features/u/train-000001"] == "stale: other rows"
    found = Store.open(folder / "store").features("u").gather(np.arange(10))
    np.testing.assert_array_equal(found, numbers(10))


def test_of_a_file_that_changes_meanwhile_nothing_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "u.npy").read_bytes()

    def meanwhile(*given: Any, **named: Any) -> Ingested:
        np.save(folder / "u.npy", 7 * numbers(10))
        return ingest(*given, **named)

    with (
        monkeypatch.context() as patched,
        pytest.raises(SourceError, match=r"u\.npy was changed while it was imported"),
    ):
        patched.setattr("pipeline.extract.ingest", meanwhile)
        run(folder, u=in_order(folder))
    (folder / "u.npy").write_bytes(whole)
    run(folder, u=in_order(folder))
    np.testing.assert_array_equal(Store.open(folder / "store").features("u").gather(np.arange(10)), numbers(10))


def test_a_killed_import_goes_on_with_what_it_has(folder: Path) -> None:
    layout = Layout(folder / "store")
    unfinished = layout.manifest.read_bytes()
    run(folder, u=in_order(folder))
    whole = content(layout.root)
    layout.manifest.write_bytes(unfinished)
    layout.features("u", "train-000001").unlink()
    assert copied(run(folder, u=in_order(folder))) == ["features/u/train-000001"]
    assert content(layout.root) == whole


def test_features_are_kept_without_their_file_and_not_made_without_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "u.npz", id=NAMES[:9], u=numbers(9))
    setting = FeatureFile(file=str(folder / "u.npz"), array="u", key="id")
    run(folder, u=setting)
    (folder / "u.npz").unlink()
    done = run(folder, teachers=replace(TINY, text="tiny_teachers:no_e"), u=setting)
    assert (copied(done), "u" in done.manifest.features) == ([], True)
    assert "Kept: features/u, imported before" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SourceError, match=r"u\.npz cannot be read"):
        run(folder, u=replace(setting, unit=True))
    Layout(folder / "store").features("u", "train-000001").unlink()
    with pytest.raises(SourceError, match=r"u\.npz is absent, and must be imported again"):
        run(folder, u=setting)


def test_each_of_a_row_s_vectors_is_brought_to_length_one(folder: Path) -> None:
    vectors = np.random.default_rng(0).uniform(0.1, 1, (10, 3, 4)).astype(np.float32)
    np.save(folder / "u.npy", vectors)
    setting = replace(in_order(folder), unit=True)
    run(folder, u=setting)
    store = Store.open(folder / "store")
    found = store.features("u").gather(np.arange(10))
    np.testing.assert_allclose(found, vectors / np.linalg.norm(vectors, axis=2, keepdims=True), atol=1e-3)
    assert verify(store.root).whole
    digests = {"": file_digest(folder / "u.npy")}
    before = replace(
        store.manifest.features["u"], fingerprint=value_digest(["imported", "sample", None, None, True, digests])
    )
    assert FeatureImport.of("u", setting, before).fingerprint != before.fingerprint, "these had another length"
    single = replace(before, shape=(12,))
    assert FeatureImport.of("u", setting, single).fingerprint == single.fingerprint


def test_a_sample_that_was_left_out_may_have_a_key_of_any_letters(folder: Path) -> None:
    np.savez(folder / "u.npz", id=[*NAMES[:9], NAMES[11]], u=numbers(10))
    run(folder, u=FeatureFile(file=str(folder / "u.npz"), array="u", key="id"))
    np.testing.assert_array_equal(Store.open(folder / "store").features("u").gather(np.arange(9)), numbers(9))


def test_features_of_classes_need_labels(folder: Path) -> None:
    np.savez(folder / "u.npz", id=["cat"], u=numbers(1))
    setting = FeatureFile(file=str(folder / "u.npz"), array="u", key="id", level="class")
    with pytest.raises(SourceError, match=r"data\.features\.u is of classes, and the store has none"):
        run(folder, u=setting)


@pytest.mark.parametrize("level", ["sample", "caption"])
def test_names_may_be_longer_together_than_2_gib(made: Path, level: Any) -> None:
    """As they may where offsets have 64 bits."""
    assert str(_names(level, Layout(made / "store")).type) == "large_string"


def test_a_name_longer_than_a_file_s_may_be_is_refused_at_once() -> None:
    with pytest.raises(ParameterError, match="expected at most 255 characters"):
        load_parameters(ExtractParameters, None, overrides=[f"data.features.{256 * 'n'}.file=u.npy"], recorded={})
