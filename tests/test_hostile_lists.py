"""Lists and marks beside a store that another program wrote: a message each, and one of them costs no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from starlette.exceptions import HTTPException

from pipeline.inspection.cli import main
from pipeline.serve.listed_pairs import KINDS, SCHEMA, PairList, _browsed, _index
from pipeline.serve.served_store import ServedStore
from stores import Store, StoreError

ALTERED: dict[str, dict[str, pa.Array]] = {
    "text-for-rows": {"caption_row": pa.array(["0"])},
    "null-row": {"caption_row": pa.array([None], pa.int64())},
    "lists-for-rows": {"image_row": pa.array([[1]])},
    "fractions": {"image_row": pa.array([0.5])},
    "sample-past-the-end": {"sample_row": pa.array([10**9])},
    "null-score": {"score": pa.array([None], pa.float32())},
}


@pytest.fixture
def beside(scenes_store: Store, tmp_path: Path) -> PairList:
    store = Store.open(shutil.copytree(scenes_store.root, tmp_path / "store"))
    return PairList(now=ServedStore(store, None), kind="missing", split="train")


def write_list(pairs: PairList, changes: dict[str, pa.Array]) -> None:
    schema = KINDS["missing"][1]
    values: dict[str, Any] = {
        field.name: pa.array([0], pa.int64()).cast(field.type)
        if pa.types.is_primitive(field.type)
        else pa.array(["x"], field.type)
        for field in schema
    }
    caption = pairs.now.store.captions["text"][0].as_py()
    columns = {**values, "image_row": pa.array([1]), "caption": pa.array([caption], pa.large_string()), **changes}
    pairs.file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), pairs.file)


@pytest.mark.parametrize("kind", ALTERED)
def test_a_list_of_other_columns_is_refused(beside: PairList, kind: str) -> None:
    write_list(beside, {})
    assert "pair-0" in _browsed(beside, 1)
    write_list(beside, ALTERED[kind])
    with pytest.raises((StoreError, HTTPException)):
        _browsed(beside, 1)


@pytest.mark.parametrize("column", [pa.array(["x"]), pa.array([None], pa.int64())], ids=["text", "null"])
def test_marks_of_other_columns_cost_no_other_list(beside: PairList, column: pa.Array) -> None:
    write_list(beside, {})
    fingerprint = beside.now.store.manifest.source_fingerprint
    marks = {field.name: pa.array([None], field.type) for field in SCHEMA}
    (beside.file.parents[1] / "store-marks").mkdir()
    place = beside.file.parents[1] / "store-marks" / "missing-train.parquet"
    pq.write_table(pa.table({**marks, "data": pa.array([fingerprint]), "caption_row": column}), place)
    assert "its marks cannot be read" in _index(beside.now)
    with pytest.raises(StoreError):
        _browsed(beside, 1)


def test_a_vocabulary_takes_no_picture_s_place(scenes_store: Store, tmp_path: Path) -> None:
    picture = bytes(range(256))
    (tmp_path / "a.jpg").write_bytes(picture)
    flags = ["vocabulary", str(scenes_store.root), "--split", "train", "--out", str(tmp_path / "a.jpg")]
    done = CliRunner().invoke(main, flags)
    assert (done.exit_code, (tmp_path / "a.jpg").read_bytes()) == (2, picture), done.output
