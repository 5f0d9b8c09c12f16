"""The ground floor: atomic files, features by row, images by row, indices, the manifest."""

from __future__ import annotations

import hashlib
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

import h5py
import numpy as np
import pyarrow as pa
import pytest
from refusals import refused
from written_stores import vectors_entry

import pipeline
import stores
import train
from stores import Features, Shard, Store, StoreError, tables
from stores.atomic import atomic_path
from stores.errors import DamagedStoreError
from stores.features import PartOrigin, part_fault, write_part
from stores.index import Index
from stores.layout import Layout, teacher_slug
from stores.manifest import read_manifest, write_manifest

CHECKOUT = Path(__file__).resolve().parents[1]
ORIGIN = PartOrigin(teacher_fingerprint="a" * 64, shard_sha256="b" * 64)


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def make_features(folder: Path, counts: list[int], dim: int = 8) -> tuple[Features, np.ndarray]:
    """Write feature parts of the given sizes; return the reader and all rows."""
    layout, table, shards, first = Layout(folder), unit_rows(sum(counts), dim), [], 0
    for number, count in enumerate(counts):
        name = f"train-{number:06d}"
        shards.append(
            Shard(
                name=name,
                split="train",
                samples=count,
                captions=0,
                first_sample=first,
                first_caption=0,
                bytes=0,
                sha256="b" * 64,
            )
        )
        write_part(layout.features("t", name), table[first : first + count], np.ones(count, bool), ORIGIN)
        first += count
    teacher = vectors_entry(dim, "a" * 64)
    return Features(layout, "t", tuple(shards), teacher), table


@pytest.mark.parametrize("package", [pipeline, stores, train])
def test_each_package_is_the_checkout_s(package: object) -> None:
    assert Path(package.__file__).is_relative_to(CHECKOUT)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_slugs_are_safe_folder_names() -> None:
    assert teacher_slug("unicom:ViT-B/32", "image") == "unicom-ViT-B-32"
    assert teacher_slug("sentence-transformers:../../etc", "text") == "sentence-transformers-..-..-etc"
    with pytest.raises(StoreError):
        teacher_slug("::", "image")


@pytest.mark.parametrize("counts", [[30], [7, 1, 12, 10]])
def test_gather_finds_rows_in_any_order_with_repeats(tmp_path: Path, counts: list[int]) -> None:
    features, table = make_features(tmp_path, counts)
    rows = np.random.default_rng(1).integers(30, size=200)
    np.testing.assert_array_equal(features.gather(rows), table[rows])
    assert features.gather(np.array([], dtype=np.int64)).shape == (0, 8)


def test_parts_are_mapped_one_by_one_as_rows_are_touched(tmp_path: Path) -> None:
    features, table = make_features(tmp_path, [3] * 20)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for row in np.random.default_rng(2).permutation(60):
        np.testing.assert_array_equal(features.gather(np.array([row, row])), table[[row, row]])
    assert len(features._parts) == 20
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10, "no map keeps its file open"


def test_threads_may_gather_while_parts_are_mapped(tmp_path: Path) -> None:
    for attempt in range(5):
        features, table = make_features(tmp_path / str(attempt), [3] * 60)

        def look(seed: int, features: Features = features, table: np.ndarray = table) -> bool:
            rows = np.random.default_rng(seed).integers(180, size=(200, 4))
            return all((features.gather(batch) == table[batch]).all() for batch in rows)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(look, range(8)))


@pytest.mark.parametrize("row", [-1, 30])
def test_rows_outside_are_refused(tmp_path: Path, row: int) -> None:
    features, _ = make_features(tmp_path, [30])
    with pytest.raises(StoreError, match="it has rows 0 to 29"):
        features.gather(np.array([0, row]))


def test_features_are_mapped_not_read_and_cross_no_pickle(tmp_path: Path) -> None:
    features, table = make_features(tmp_path, [10, 20])
    features.gather(np.arange(30))
    copy = pickle.loads(pickle.dumps(features))
    assert not copy._parts
    np.testing.assert_array_equal(copy.gather(np.arange(30)), table)
    assert len(features._parts) == 2
    assert all(not part.flags.owndata and not part.flags.writeable for part in features._parts.values())
    assert not features._view.window.flags.writeable


def test_equal_parts_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_part(tmp_path / name, unit_rows(5, 4), np.ones(5, bool), ORIGIN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_flipped_byte_anywhere_in_a_part_is_seen_before_hdf5_reads_it(tmp_path: Path) -> None:
    """HDF5 may crash, or read for ever, on a damaged header; of the features themselves every byte is tried."""
    path = tmp_path / "part.h5"
    write_part(path, unit_rows(5, 4), np.ones(5, bool), ORIGIN)
    assert part_fault(path, (5, 4), ORIGIN) is None
    with h5py.File(path) as file:
        start, size = file["features"].id.get_offset(), file["features"].id.get_storage_size()
    whole = path.read_bytes()
    for place in {*range(start, start + size), *range(0, len(whole), 7)}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert part_fault(path, (5, 4), ORIGIN) == "damaged: checksum"


def test_stale_and_broken_parts_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "part"
    assert part_fault(path, (5, 4), ORIGIN) == "missing"
    write_part(path, unit_rows(5, 4), np.ones(5, bool), ORIGIN)
    assert part_fault(path, (5, 4), replace(ORIGIN, teacher_fingerprint="c" * 64)) == "stale: other teacher"
    assert part_fault(path, (5, 4), replace(ORIGIN, shard_sha256="c" * 64)) == "stale: other shard"
    assert part_fault(path, (6, 4), ORIGIN) == "damaged: other shape"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert part_fault(path, (5, 4), ORIGIN) == "damaged: checksum"
    path.write_bytes(b"no HDF5" + hashlib.sha256(b"no HDF5").digest())
    assert part_fault(path, (5, 4), ORIGIN) == "damaged: not readable as HDF5"


def test_a_damaged_part_is_named_when_it_is_gathered(tmp_path: Path) -> None:
    features, _ = make_features(tmp_path, [10])
    path = Layout(tmp_path).features("t", "train-000000")
    path.write_bytes(b"not HDF5")
    with refused(DamagedStoreError, path=path):
        features.gather(np.array([0]))
    write_part(path, unit_rows(10, 8), np.ones(10, bool), replace(ORIGIN, shard_sha256="c" * 64))
    with refused(DamagedStoreError, path=path):
        features.gather(np.array([0]))


def test_exact_index_equals_brute_force_and_ids_are_rows(tmp_path: Path) -> None:
    table, rows = unit_rows(50, 16), np.arange(100, 150)
    Index.exact(table, rows).write(tmp_path / "i.faiss")
    index = Index.read(tmp_path / "i.faiss")
    similarity, found = index.search(table[:9], 4)
    scores = table[:9].astype(np.float32) @ table.astype(np.float32).T
    order = np.argsort(-scores, axis=1)[:, :4]
    np.testing.assert_array_equal(found, order + 100)
    np.testing.assert_allclose(similarity, np.take_along_axis(scores, order, axis=1), atol=1e-6)
    with pytest.raises(StoreError, match=r"the index searches \(n, 16\)"):
        index.search(table[:, :8], 1)


def test_no_manifest_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a finished store"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("found", "replaced"),
    [('"format_version": 2', '"format_version": 99'), ('"train-000000"', '"../train-0"'), ("{", "[")],
    ids=["later-version", "path", "not-json"],
)
def test_foreign_or_hostile_manifests_are_refused(
    tmp_path: Path, scenes_store: Store, found: str, replaced: str
) -> None:
    layout = Layout(tmp_path)
    write_manifest(scenes_store.manifest, layout)
    assert read_manifest(layout) == scenes_store.manifest
    layout.manifest.write_text(layout.manifest.read_text().replace(found, replaced))
    with pytest.raises(StoreError, match=r"manifest.json"):
        Store.open(tmp_path)


def test_unknown_splits_and_teachers_name_the_known_ones(scenes_store: Store) -> None:
    with pytest.raises(StoreError, match="it has train, val, test"):
        scenes_store.shards("dev")
    with pytest.raises(StoreError, match="it has hog-color, minilm"):
        scenes_store.features("unicom")
    with pytest.raises(StoreError, match="no index"):
        scenes_store.index("hog-color", "dev")


class OneAtATime:
    """Arrow's reader of a file of batches, which sees whether several threads use it at once."""

    def __init__(self, reader: pa.ipc.RecordBatchFileReader) -> None:
        self._reader, self._busy, self.num_record_batches = reader, Lock(), reader.num_record_batches

    def get_batch(self, number: int) -> pa.RecordBatch:
        assert self._busy.acquire(blocking=False), "two threads at once, of which one in hundreds would fail"
        try:
            time.sleep(0.01)
            return self._reader.get_batch(number)
        finally:
            self._busy.release()


def test_images_are_read_by_many_threads_at_once(scenes_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [scenes_store.images[row] for row in range(80)]
    opened = tables.open_batches
    monkeypatch.setattr(tables, "open_batches", lambda *given: OneAtATime(opened(*given)))
    images = Store.open(scenes_store.root).images
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(images.__getitem__, range(80))) == whole
