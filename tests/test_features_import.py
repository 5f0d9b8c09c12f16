"""Features that a user has: imported from every kind of file, by order and by key, checked, and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import content, small_scenes

from pipeline.cli import main
from pipeline.extract import extract
from pipeline.inspection.info import describe
from pipeline.inspection.verify import verify
from stores import CusaError, ExtractParameters, Store
from stores.layout import Layout
from stores.parameters import Extract, FeatureFile, Teachers

TINY = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")
Writer = Callable[[Path, np.ndarray, list[str] | None], Path]


def parameters(**features: FeatureFile) -> ExtractParameters:
    """Of a store of 12 train, 4 val and 2 test samples, in shards of 5."""
    small = small_scenes(train=12, val=4, test=2)
    return replace(
        small, teachers=TINY, extract=Extract(shard_size=5, workers=0), data=replace(small.data, features=features)
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store without imported features."""
    root = tmp_path_factory.mktemp("bare") / "store"
    extract(parameters(), root)
    return Store.open(root)


def ids(store: Store) -> list[str]:
    return store.samples["source_id"].to_pylist()


def regions(rows: int, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float16)


def as_npz(path: Path, values: np.ndarray, keys: list[str] | None) -> Path:
    np.savez_compressed(path / "f.npz", **{"boxes": values, **({"id": np.array(keys)} if keys else {})})
    return path / "f.npz"


def as_hdf5(path: Path, values: np.ndarray, keys: list[str] | None) -> Path:
    with h5py.File(path / "f.h5", "w") as file:
        file.create_dataset("boxes", data=values, chunks=(2, *values.shape[1:]))
        if keys:
            file["id"] = keys
    return path / "f.h5"


def as_parquet(path: Path, values: np.ndarray, keys: list[str] | None) -> Path:
    columns = {"boxes": pa.array(values.astype(np.float32).tolist()), **({"id": keys} if keys else {})}
    pq.write_table(pa.table(columns), path / "f.parquet", row_group_size=7)
    return path / "f.parquet"


@pytest.mark.parametrize("write", [as_npz, as_hdf5, as_parquet])
def test_rows_are_found_by_their_keys_in_any_order(bare: Store, tmp_path: Path, write: Writer) -> None:
    names, values = ids(bare), regions(18)
    order = np.random.default_rng(0).permutation(18)[:13]  # five samples have no regions
    file = write(tmp_path, values[order], [names[row] for row in order])
    setting = FeatureFile(file=str(file), array="boxes", key="id")
    done = extract(parameters(regions=setting), tmp_path / "store")
    found = Store.open(tmp_path / "store").features("regions")
    assert (found.shape, found.unit, found.level, len(found)) == ((3, 4), False, "sample", 18)
    assert sorted(np.flatnonzero(found.valid)) == sorted(order)
    np.testing.assert_array_equal(found.gather(order), values[order])
    assert not found.gather(np.flatnonzero(~found.valid)).any()
    assert done.manifest.features["regions"].invalid == 5
    assert "regions" not in done.manifest.indices
    assert verify(tmp_path / "store").whole
    shown = {entry["features"]: entry for entry in describe(tmp_path / "store")["features"]}["regions"]
    assert (shown["shape"], shown["absent"], shown["rows"], shown["precision"]) == ([3, 4], 5, 18, None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.h5")}
    assert extract(parameters(regions=setting), tmp_path / "store").made == {}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.h5")} == before
    part = next((tmp_path / "store" / "features" / "regions").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    (fault,) = (fault for check in verify(tmp_path / "store").checks for fault in check.faults)
    assert (fault.file, fault.found) == (f"features/regions/{part.name}", "damaged: checksum")
    assert f"--features regions={file}" in fault.remedy


def test_rows_in_order_have_a_file_per_split(bare: Store, tmp_path: Path) -> None:
    files = {}
    for split, count in (("train", 12), ("test", 2)):
        np.save(tmp_path / f"{split}.npy", regions(count, (7,)))
        files[split] = str(tmp_path / f"{split}.npy")
    extract(parameters(sizes=FeatureFile(file=files, unit=True)), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    found = store.features("sizes")
    for split, count in (("train", 12), ("test", 2)):
        given = regions(count, (7,)).astype(np.float32)
        expected = given / np.linalg.norm(given, axis=1, keepdims=True)
        np.testing.assert_allclose(found.gather(store.rows(split, "sample")), expected, atol=1e-3)
    assert found.valid[store.rows("val", "sample")].sum() == 0, "a split without a file has none"
    similarity, rows = store.index("sizes", "train").search(found.gather(np.array([4])), 1)
    assert rows.tolist() == [[4]]
    assert similarity[0, 0] == pytest.approx(1, abs=1e-2)
    np.save(tmp_path / "train.npy", 2 * regions(12, (7,)) + 1)
    done = extract(parameters(sizes=FeatureFile(file=files, unit=True)), tmp_path / "store")
    changed = [name for name, why in done.made.items() if name.startswith("features/sizes") and "other file" in why]
    assert len(changed) == len(store.manifest.shards), "a changed file is copied anew"


def test_classes_and_captions_have_features_too(bare: Store, tmp_path: Path) -> None:
    assert bare.classes is not None
    names = bare.classes["name"].to_pylist()
    assert names == sorted({label for label in bare.samples["label"].to_pylist() if label is not None})
    vectors = regions(len(names), (5,))
    np.savez(tmp_path / "classes.npz", vectors=vectors[::-1], name=np.array(names[::-1]))
    captions = {}
    for split in bare.manifest.splits:
        np.save(tmp_path / f"{split}.npy", regions(bare.manifest.rows(split, "caption"), (2, 3)))
        captions[split] = str(tmp_path / f"{split}.npy")
    wanted = parameters(
        word=FeatureFile(file=str(tmp_path / "classes.npz"), array="vectors", key="name", level="class"),
        speech=FeatureFile(file=captions, level="caption"),
    )
    extract(wanted, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(store.features("word").gather(np.arange(len(names))), vectors)
    speech = store.features("speech")
    assert (speech.level, len(speech), bool(speech.valid.all())) == ("caption", len(store.captions), True)
    last = store.rows("val", "caption")[-1:]
    np.testing.assert_array_equal(speech.gather(last)[0], regions(20, (2, 3))[-1])
    assert verify(tmp_path / "store").whole


def broken(values: np.ndarray, place: tuple[int, ...], number: float) -> np.ndarray:
    values = values.astype(np.float64)
    values[place] = number
    return values


@pytest.mark.parametrize(
    ("values", "keys", "setting", "message"),
    [
        (
            broken(regions(18), (7, 1, 2), np.nan),
            True,
            {},
            r"row 7 \(train-7\) of .*f.npz holds nan, which is no number",
        ),
        (broken(regions(18), (3, 0, 0), 1e6), True, {}, r"row 3 .* holds 1000000.0, beyond . 65,504"),
        (broken(regions(18, (4,)), (2,), 0.0), True, {"unit": True}, r"row 2 .* length is zero"),
        (regions(18), ["nobody", "no one"], {}, r"has 2 keys that the store does not know \('nobody', 'no one'\)"),
        (regions(18), ["0", "0"], {}, r"names '.*' twice"),
        (regions(18), False, {}, r"one file for the splits train, val, test.*Name a file per split"),
        (regions(18), False, {"file": "train"}, r"f.npz has 18 rows; the split 'train' has 12 samples"),
        (regions(18), False, {"file": "dev"}, r"the store has no split 'dev'; it has train, val, test"),
        (regions(18), True, {"array": "boxs"}, r"it has no 'boxs'; it has boxes, id"),
        (regions(18), True, {"key": "name"}, r"it has no 'name'; it has boxes, id"),
        (regions(18), True, {"level": "caption"}, r"18 keys that the store does not know .* such as '.*#0'"),
        (regions(18).astype(str), True, {}, r"not numbers"),
        (regions(18)[:, 0, 0], True, {}, r"holds an array of the shape \(18,\)"),
    ],
    ids=[
        *("nan", "too-large", "no-length", "unknown-keys", "key-twice", "one-file-for-splits", "wrong-count"),
        *("unknown-split", "unknown-array", "unknown-key", "caption-keys", "texts", "one-axis"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_message(
    bare: Store, tmp_path: Path, values: np.ndarray, keys: Any, setting: dict[str, Any], message: str
) -> None:
    names = ids(bare)
    if isinstance(keys, list):
        names[5], names[9] = (keys[0], keys[1]) if keys[0] != keys[1] else (names[4], names[8])
    file = as_npz(tmp_path, values, names if keys else None)
    where = {setting["file"]: str(file)} if "file" in setting else str(file)
    given = {"array": "boxes", "key": "id" if keys else None, **setting, "file": where}
    extract(parameters(), tmp_path / "store")
    before = content(tmp_path / "store")
    with pytest.raises(CusaError, match=message):
        extract(parameters(regions=FeatureFile(**given)), tmp_path / "store")
    after = content(tmp_path / "store")
    assert after == before, "nothing half-made is left"


def test_files_that_are_none_are_explained(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}] * 18, dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", regions(18))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:200])
    (tmp_path / "text.csv").write_text("1,2\n")
    pq.write_table(pa.table({"v": [[1.0, 2.0], None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    for name, message in (
        ("object.npy", "cannot be read as features: Array can't be memory-mapped: Python objects"),
        ("cut.npy", "cannot be read as features"),
        ("text.csv", "is no file of features that can be imported. Expected .npy, .npz"),
        ("null.parquet", "1 of its rows are null"),
        ("ragged.parquet", "its lists have 1 to 2 entries"),
        ("absent.npy", r"absent.npy cannot be read \(No such file"),
    ):
        with pytest.raises(CusaError, match=message):
            extract(parameters(regions=FeatureFile(file=str(tmp_path / name))), tmp_path / "store")


def test_from_the_command_line(bare: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_npz(tmp_path, regions(18), ids(bare))
    settings = ["scenes.train=12", "scenes.val=4", "scenes.test=2", 'features."v1.2".key=id']
    flags = [part for setting in settings for part in ("-S", f"data.{setting}")]
    flags += ["--image-teacher", TINY.image, "--text-teacher", TINY.text, "-S", "extract.workers=0", "--store", "store"]
    given = ["--features", "v1.2=f.npz"]
    done = CliRunner().invoke(main, [*flags, *given, "-S", 'data.features."v1.2".array=boxes'])
    assert done.exit_code == 0, done.output + done.stderr
    assert "v1.2: 3 × 4-d, imported" in " ".join(done.output.split())
    for wrong, message in (
        (["--features", "regions"], "expected NAME=FILE, such as regions=regions.npy"),
        (["--features", "../x=f.npz"], "the name: found '../x', expected letters, digits"),
        ([*given, "-S", 'data.features."v1.2".kay=id'], "v1.2.kay: unknown parameter. Did you mean 'key'"),
    ):
        refused = CliRunner().invoke(main, [*flags, *wrong])
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())


def test_a_store_of_format_1_is_extended_in_place(bare: Store, tmp_path: Path) -> None:
    """As format 1 had it: no classes, features of teachers alone, with `dim`."""
    extract(parameters(), tmp_path / "store")
    layout = Layout(tmp_path / "store")
    values = json.loads(layout.manifest.read_text())
    values["teachers"] = {
        slug: {
            **{key: entry[key] for key in ("spec", "modality", "precision", "fingerprint", "parts", "invalid")},
            "dim": entry["shape"][0],
        }
        for slug, entry in values.pop("features").items()
    }
    layout.classes.unlink()
    del values["files"]["classes.arrow"], values["classes"]
    layout.manifest.write_text(json.dumps({**values, "format_version": 1}))
    parts = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in layout.root.rglob("*.h5")}
    assert len(parts) == 2 * len(bare.manifest.shards)
    old = Store.open(layout.root)
    assert old.features("tiny_teachers-length").shape == bare.features("tiny_teachers-length").shape
    np.save(tmp_path / "r.npy", regions(12))
    wanted = parameters(regions=FeatureFile(file={"train": str(tmp_path / "r.npy")}))
    done = extract(replace(wanted, teachers=replace(TINY, image="hog-color")), layout.root)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in parts} == parts
    assert done.manifest.format_version == 2
    assert set(done.manifest.features) == {"hog-color", "tiny_teachers-mean_colour", "tiny_teachers-length", "regions"}
    assert Store.open(layout.root).classes is not None
    assert verify(layout.root).whole


def keyed(number: int) -> list[str]:
    return ["-S", f"data.features.boxes{number}.key=id", "-S", f"data.features.boxes{number}.array=boxes"]


def test_a_file_is_added_to_a_store_as_it_was_made(scenes_store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    """Without the parameters that it was made by; a params.yaml of something else beside it changes nothing."""
    shutil.copytree(scenes_store.root, tmp_path / "store")
    ids = np.array(scenes_store.samples["source_id"].to_pylist())
    np.savez(tmp_path / "regions.npz", boxes=np.ones((80, 4, 3), np.float32), id=ids)
    before = {name: data for name, data in content(tmp_path / "store").items() if name != "manifest.json"}
    monkeypatch.chdir(tmp_path)
    for number, other in enumerate(("", "data: {scenes: {train: 9}}\n")):
        if other:
            (tmp_path / "params.yaml").write_text(other)
        added = CliRunner().invoke(
            main, ["--store", "store", "--features", f"boxes{number}=regions.npz", *keyed(number)]
        )
        assert added.exit_code == 0, added.output
        assert content(tmp_path / "store").items() >= before.items()
        assert Store.open(tmp_path / "store").features(f"boxes{number}").shape == (4, 3)
    absent = CliRunner().invoke(main, ["--store", "nostore", "--teacher", "hog-color"])
    assert (absent.exit_code, "nostore: there is no store" in absent.output) == (2, True), absent.output
    assert not (tmp_path / "nostore").exists()
