"""A store that a stranger altered, checksums and all: no reader crashes, none leaves the store, and verify finds it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import small_scenes
from refusals import refused

from pipeline.cli import main as cusa_extract
from pipeline.extract import extract
from pipeline.inspection.neighbours import Query, neighbours
from pipeline.inspection.verify import verify
from stores import Store, StoreError
from stores.digests import file_digest
from stores.errors import DamagedStoreError

SAMPLES, PART, INDEX = "samples.arrow", "features/minilm/train-000000.h5", "indices/minilm/train.faiss"


def manifest_says(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = store / "manifest.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def with_column(store: Path, name: str, value: int | None) -> None:
    """Give all rows of a column of samples.arrow one value, and the manifest the new checksum."""
    path = store / SAMPLES
    reader = pa.ipc.open_file(path.read_bytes())
    with pa.ipc.new_file(str(path), reader.schema) as table:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            place = batch.schema.get_field_index(name)
            field = batch.schema.field(name)
            table.write_batch(batch.set_column(place, field, pa.array([value] * len(batch), field.type)))
    manifest_says(store, lambda held: held["files"].update({SAMPLES: file_digest(path)}))


def with_part(store: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a part, and the checksums of it."""
    path = store / PART
    whole = io.BytesIO(path.read_bytes()[:-32])
    with h5py.File(whole, "r+") as file:
        change(file)
    path.write_bytes(whole.getvalue() + hashlib.sha256(whole.getvalue()).digest())
    manifest_says(store, lambda held: held["features"]["minilm"]["parts"].update({path.stem: file_digest(path)}))


def as_group(name: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_group(name)

    return change


def elsewhere(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    file.create_dataset("features", shape, np.float16, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def as_link(place: str) -> Callable[[Path], object]:
    """Move a file or folder out of the store, and leave a link to it."""

    def change(store: Path) -> None:
        (store / place).rename(store.parent / "outside")
        (store / place).symlink_to(store.parent / "outside")

    return change


def with_index_claiming(store: Path) -> None:
    """Let an index claim vectors of 2 GiB."""
    path = store / INDEX
    data = path.read_bytes()
    index = faiss.read_index(str(path))
    size = struct.pack("<Q", index.ntotal * index.d)
    if size not in data:
        size = struct.pack("<Q", 4 * index.ntotal * index.d)
    assert data.count(size) == 1
    path.write_bytes(data.replace(size, struct.pack("<Q", 2**31)))


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-tables": (lambda store: manifest_says(store, lambda held: held.update(files={})), "no checksum of captions"),
    "classes": (lambda store: manifest_says(store, lambda held: held.update(classes=10**15)), "000 classes"),
    "deep": (lambda store: (store / "manifest.json").write_text("[" * 200_000), "nested deeper than 64 levels"),
    "list": (lambda store: (store / "manifest.json").write_text("[1]"), "a JSON list"),
    "null": (lambda store: with_column(store, "image_offset", None), "expected a value in each row"),
    "features-group": (lambda store: with_part(store, as_group("features")), "not readable"),
    "valid-group": (lambda store: with_part(store, as_group("valid")), "not readable"),
    "elsewhere": (lambda store: with_part(store, elsewhere), "not readable"),
    "linked-tar": (as_link("shards/train-000000.tar"), "which no reader follows"),
    "linked-part": (as_link(PART), "a link"),
    "linked-table": (as_link(SAMPLES), "which no reader follows"),
    "index": (lambda store: with_index_claiming(store), "checksum"),
}


@pytest.fixture
def copy(scenes_store: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes_store.root, tmp_path / "store"))


@pytest.mark.parametrize("kind", ALTERED)
def test_verify_finds_what_was_altered_with_its_checksums(copy: Path, kind: str) -> None:
    change, expected = ALTERED[kind]
    change(copy)
    report = verify(copy)
    faults = [fault.found for check in report.checks for fault in check.faults]
    assert any(expected in found for found in faults), faults


def _shown(store: Path) -> object:
    return neighbours(store, Query(row=0, modality="image"), 2)


READ: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "linked-tar": (ALTERED["linked-tar"][0], lambda store: Store.open(store).images[0]),
    "linked-part": (ALTERED["linked-part"][0], lambda store: Store.open(store).features("minilm").gather(np.arange(1))),
    "linked-table": (ALTERED["linked-table"][0], lambda store: Store.open(store).samples),
    "group": (ALTERED["features-group"][0], lambda store: Store.open(store).features("minilm").gather(np.arange(1))),
    "null": (ALTERED["null"][0], lambda store: Store.open(store).images[0]),
    "first": (lambda store: with_column(store, "caption_first", 10**12), _shown),
    "count": (lambda store: with_column(store, "caption_first", -5), _shown),
}


@pytest.mark.parametrize("kind", READ)
def test_readers_refuse_what_was_altered(copy: Path, kind: str) -> None:
    change, read = READ[kind]
    read(copy)
    change(copy)
    with pytest.raises(DamagedStoreError):
        read(copy)


def test_a_manifest_of_any_depth_is_made_again_and_linked_folders_are_not_written_into(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (copy / "manifest.json").read_bytes()
    ALTERED["deep"][0](copy)
    monkeypatch.chdir(copy.parent)  # where no params.yaml is
    said = CliRunner().invoke(cusa_extract, ["--store", str(copy)])
    assert said.exit_code == 2
    assert "--source" in said.output, "what it was made of is lost with it"
    extract(small_scenes(), copy)
    assert (copy / "manifest.json").read_bytes() == whole
    as_link("features")(copy)
    assert Store.open(copy).features("minilm").valid.all(), "a person's folder on another disk is read"
    with refused(StoreError, path=copy / "features"):
        extract(small_scenes(), copy)


def test_an_index_is_given_no_more_memory_than_its_file_is_large(copy: Path) -> None:
    with_index_claiming(copy)
    with pytest.raises(DamagedStoreError, match="limit"):
        Store.open(copy).index("minilm", "train")
