"""cusa-store suspects: the score is the loop's, wrong pairs come first, the page and the clean column are whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import small_scenes

from pipeline.extract import extract
from pipeline.inspection.cli import main
from pipeline.inspection.pair_fit import PairFit
from stores import ExtractParameters, Store
from stores.clean import read_clean, write_clean
from stores.parameters import Data, Extract, Noise

IMAGES, WIDTH = 120, 10


@pytest.fixture(scope="module")
def noisy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path, wanted = tmp_path_factory.mktemp("suspects") / "store", small_scenes(train=IMAGES, val=4, test=4)
    extract(replace(wanted, data=replace(wanted.data, noise=Noise(ratio=0.2, level="caption"))), path)
    return Store.open(path)


def test_the_fit_is_the_loops(noisy_store: Store) -> None:
    """Every image is among the random ones here, so that the loop needs no draw."""
    fit = PairFit(noisy_store, ("hog-color", "minilm"), "train", WIDTH)
    text, image = fit.scores()
    images = noisy_store.features("hog-color").gather(np.arange(IMAGES)).astype(np.float32)
    captions = noisy_store.features("minilm").gather(np.arange(5 * IMAGES)).astype(np.float32)
    paired = noisy_store.pairing["sample"].to_numpy()[: 5 * IMAGES]
    said = [np.flatnonzero(paired == sample) for sample in range(IMAGES)]
    for row in range(0, 5 * IMAGES, 37):
        own = paired[row]
        nearest = [sample for sample in np.argsort(-(images @ images[own])) if sample != own][:WIDTH]
        best = np.array([max(captions[row] @ captions[other] for other in rows) for rows in said])
        assert text[row] == pytest.approx((best[nearest].mean() - best.mean()) / best.std(), abs=2e-2)
        others = [paired[other] for other in np.argsort(-(captions @ captions[row])) if paired[other] != own][:WIDTH]
        alike = images @ images[own]
        assert image[row] == pytest.approx((alike[others].mean() - alike.mean()) / alike.std(), abs=2e-2)


def test_wrong_pairs_lead_the_list(noisy_store: Store, tmp_path: Path) -> None:
    out, before = tmp_path / "out", sorted(path.name for path in noisy_store.root.rglob("*"))
    call = ["suspects", str(noisy_store.root), "--count", "60", "--html", "7", "--neighbours", "20", "--out", str(out)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in noisy_store.root.rglob("*")) == before
    listed = pq.read_table(out / "suspects.parquet").to_pylist()
    own, paired = (table["sample"].to_pylist() for table in (noisy_store.captions, noisy_store.pairing))
    for row in listed:
        assert row["sample_row"] == paired[row["caption_row"]]
        assert row["wrong"] == (own[row["caption_row"]] != row["sample_row"])
    fits = [row["text_fit"] + row["image_fit"] for row in listed]
    assert fits == sorted(fits)
    precision = np.mean([row["wrong"] for row in listed])
    assert precision > 0.6
    assert f"{precision:.1%}" in result.output
    page = (out / "suspects.html").read_text()
    assert (page.count("<article>"), page.count("data:image/jpeg;base64,")) == (7, 7)
    assert "://" not in page
    captions, clean = read_clean(out / "clean.arrow", noisy_store)
    assert len(captions) == 5 * IMAGES
    wrong = np.array(own)[captions] != np.array(paired)[captions]
    assert clean[wrong].mean() < clean[~wrong].mean() - 0.2
    assert CliRunner().invoke(main, call).exit_code == 0, "its own output is written again"
    (out / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(main, call)
    assert refused.exit_code == 2
    assert "an earlier list of suspects" in " ".join(refused.output.split())


def test_nothing_is_called_wrong_where_nothing_was_made_so(noisy_store: Store, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(noisy_store.root, plain)
    extract(small_scenes(train=IMAGES, val=4, test=4), plain)
    result = CliRunner().invoke(main, ["suspects", str(plain), "--split", "val", "--html", "0"])
    assert result.exit_code == 0, result.output
    listed = pq.read_table(tmp_path / "plain-suspects-val" / "suspects.parquet")
    assert listed["wrong"].null_count == len(listed) > 0


def test_a_store_is_extracted_without_its_suspects(noisy_store: Store, tmp_path: Path) -> None:
    own, paired = (table["sample"].to_numpy() for table in (noisy_store.captions, noisy_store.pairing))
    captions = noisy_store.rows("train", "caption")
    right = own[captions] == paired[captions]
    right[paired[captions] == 7] = False
    write_clean(tmp_path / "clean.arrow", noisy_store, captions, right.astype(float))
    data = Data(source=str(noisy_store.root), format="store", clean=str(tmp_path / "clean.arrow"))
    extract(ExtractParameters(data=data, extract=Extract(shard_size=50, workers=0)), tmp_path / "store")
    found = Store.open(tmp_path / "store")
    assert found.manifest.splits == noisy_store.manifest.splits
    names, texts = noisy_store.samples["source_id"].to_pylist(), noisy_store.captions["text"].to_pylist()
    rest = range(5 * IMAGES, len(texts))
    expected = {(names[paired[row]], texts[row]) for row in (*captions[right].tolist(), *rest)}
    ids, owners = found.samples["source_id"].to_pylist(), found.captions["sample"].to_pylist()
    kept = zip(owners, found.captions["text"].to_pylist(), strict=True)
    assert {(ids[owner], text) for owner, text in kept} == expected
    assert names[7] not in ids
    digests = dict(zip(names, noisy_store.samples["image_sha256"].to_pylist(), strict=True))
    assert [digests[name] for name in ids] == found.samples["image_sha256"].to_pylist()
