"""cusa-store: what is said of a store is so, damage is found wherever it is, and missing matches are matches."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.extract import extract
from pipeline.inspection.cli import main
from pipeline.inspection.teachers import default_slug
from stores import ExtractParameters, Store, tables
from stores.candidates import Evidence, Runs, _chunks
from stores.columns import Column
from stores.console import printable
from stores.digests import file_digest
from stores.features import PartOrigin, read_part, write_part
from stores.layout import Layout
from stores.manifest import write_manifest
from stores.parameters import Data, Extract, Teachers

CHECKOUT = Path(__file__).resolve().parents[1]
SCRIPT = "<script>alert('x')</script> a \"quoted\" & dark cat"
MARKUP = "[red]not markup[/red] \x1b[31m and \u202eturned"
TINY = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), "a message, not a traceback"
    return result


def words(result: Result) -> str:
    """Return all that was printed, without the frames and folds of tables."""
    return " ".join(result.output.translate(str.maketrans("│┃", "  ")).split())


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def copy(scenes_store: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes_store.root, tmp_path / "store"))


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of hostile captions, repeated images and captions, uneven counts, and a row that its teacher fails on."""
    folder = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(0)
    captions = [
        [SCRIPT, MARKUP],
        [SCRIPT],
        ["a dark cat", "the same file again", "a third"],
        ["a centre that fails"],
        [f"words and words {number}" for number in range(7)],
        ["zebra", "quartz"],
    ]
    images, annotations = [], []
    for number, texts in enumerate(captions):
        pixels = random.integers(0, 255, (1, 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "id": len(annotations) + n, "caption": t} for n, t in enumerate(texts)]
    shutil.copy(folder / "0.png", folder / "2.png")
    (folder / "bad.png").write_text("<html>")
    images.append({"id": 99, "file_name": "bad.png"})
    annotations.append({"image_id": 99, "id": 999, "caption": "no picture"})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    data = Data(source={"train": str(folder / "captions.json")}, max_bad_fraction=0.5)
    extract(
        ExtractParameters(data=data, teachers=TINY, extract=Extract(shard_size=4, workers=0, precision="fp32")),
        folder / "store",
    )
    return Store.open(folder / "store")


# --- info


def test_info_says_what_the_store_holds(scenes_store: Store) -> None:
    found = json.loads(run("info", scenes_store.root, "--json").stdout)
    assert [(s["split"], s["samples"], s["captions"], s["shards"]) for s in found["splits"]] == [
        ("train", 48, 240, 3),
        ("val", 12, 60, 1),
        ("test", 20, 100, 2),
    ]
    assert [(f["features"], f["modality"], f["rows"], f["absent"]) for f in found["features"]] == [
        ("hog-color", "image", 80, 0),
        ("minilm", "text", 400, 0),
    ]
    assert {(i["teacher"], i["split"], i["rows"]) for i in found["indices"]} >= {("minilm", "test", 100)}
    assert {t["table"]: t["rows"] for t in found["tables"]}["captions.arrow"] == 400
    assert found["truth"] == ["relevance", "caption_pairs"]
    assert found["parameters"]["extract"]["shard_size"] == 16
    assert found["bytes"] == sum(p.stat().st_size for p in scenes_store.root.rglob("*") if p.is_file())
    shown = words(run("info", scenes_store.root))
    assert "train 48 240 3" in shown
    assert scenes_store.manifest.teachers["minilm"].fingerprint[:12] in shown
    assert "truth relevance, caption_pairs" in shown
    assert "source: format scenes" in shown
    assert "parameters the defaults, but for: data.scenes.train 48" in shown
    assert "extract.shard_size 16" in shown
    assert "extract.window" not in shown, "a default"
    assert "{" not in shown, "no dictionaries"
    assert "minilm test Flat 100 exact 0." in shown
    assert "MiB" in shown


def test_info_counts_what_was_left_out(odd_store: Store) -> None:
    found = json.loads(run("info", odd_store.root, "--json").stdout)
    assert found["quarantined"] == {"samples": {"unreadable-image": 1}, "captions": {}}
    assert {f["modality"]: f["absent"] for f in found["features"]} == {"image": 0, "text": 1}
    shown = words(run("info", odd_store.root))
    assert f"source: format coco source: files of train 1, sha256 {found['source']['files']['train'][:12]}…" in shown
    assert "samples left out unreadable-image 1" in words(run("info", odd_store.root))


def test_commands_want_a_finished_store(tmp_path: Path) -> None:
    for command in ("info", "verify", "missing"):
        result = run(command, tmp_path)
        assert result.exit_code == 2
        assert "is not a finished store" in result.output


# --- verify


def test_a_whole_store_holds_and_stays_as_it_is(scenes_store: Store) -> None:
    before = content(scenes_store.root)
    result = run("verify", scenes_store.root, "--deep", "--sample", 24)
    assert result.exit_code == 0, result.output
    shown = words(result)
    assert "Everything holds." in shown
    assert "images 80 0" in shown
    assert "encoded again: hog-color 24 0 smallest cosine 1.0" in shown
    assert "encoded again: minilm 24 0 smallest cosine" in shown
    assert "Remark" not in shown
    assert content(scenes_store.root) == before


def test_rows_that_a_teacher_failed_on_hold_too(odd_store: Store) -> None:
    result = run("verify", odd_store.root, "--deep")
    assert result.exit_code == 0, result.output
    assert "encoded again: tiny_teachers-no_e 16 0" in words(result)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "samples.arrow",
        "captions.arrow",
        "relevance.arrow",
        "shards/train-000001.tar",
        "shards/train-000001.json",
        "features/hog-color/train-000001.h5",
        "indices/minilm/val.faiss",
        "indices/minilm/val.json",
    ],
)
def test_damage_is_found_and_named(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(copy / name)
    result = run("verify", copy)
    assert result.exit_code == 1, result.output
    assert name in words(result)
    assert "Run cusa-extract again" in words(result)
    assert re.search(r"\d thing(s are| is) damaged", words(result))


def test_a_damaged_table_is_not_looked_into(copy: Path) -> None:
    flip(copy / "samples.arrow")
    result = run("verify", copy, "--deep", "--sample", 0)
    assert result.exit_code == 1
    assert words(result).count("left out: samples.arrow is damaged") == 3
    assert "1 thing is damaged" in words(result)


def test_a_damaged_manifest_is_damage(copy: Path) -> None:
    cut(copy / "manifest.json")
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "cannot be read as a manifest" in words(result)


def test_files_that_nobody_names_are_a_remark(copy: Path) -> None:
    (copy / "notes.txt").touch()
    (copy / "shards" / "train-000009.tar").touch()
    (copy / "features" / "hog-color" / "test-000000.h5.tmp-12").touch()
    result = run("verify", copy)
    assert result.exit_code == 0
    shown = words(result)
    assert "notes.txt belongs to nothing" in shown
    assert "shards/train-000009.tar belongs to nothing" in shown
    assert "test-000000.h5.tmp-12 was left by a run that was stopped" in shown
    assert shown.count("Remark") == 3


def with_part(root: Path, change: Callable[[np.ndarray, np.ndarray], None]) -> str:
    """Write another first part of minilm over the old one, with checksums that agree everywhere; return its name."""
    store, layout = Store.open(root), Layout(root)
    teacher, shard = store.manifest.teachers["minilm"], store.manifest.shards[0]
    path = layout.features("minilm", shard.name)
    origin = PartOrigin(teacher_fingerprint=teacher.fingerprint, shard_sha256=shard.sha256)
    features, valid = read_part(path, (shard.captions, teacher.dim), origin)
    change(features, valid)
    write_part(path, features, valid, origin)
    changed = replace(teacher, parts={**teacher.parts, shard.name: file_digest(path)})
    write_manifest(replace(store.manifest, features={**store.manifest.teachers, "minilm": changed}), layout)
    return f"features/minilm/{path.name}"


def lengthen(features: np.ndarray, _: np.ndarray) -> None:
    features[3] *= 1.1


def break_value(features: np.ndarray, _: np.ndarray) -> None:
    features[5, 0] = np.inf


def mark(_: np.ndarray, valid: np.ndarray) -> None:
    valid[7] = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lengthen, "1 of 80 rows are of another length than 1 (± 0.01); the first is the part's row 3"),
        (break_value, "1 of 80 rows are not finite; the first is the part's row 5"),
        (mark, "1 of 80 rows are marked as absent and yet not zero; the first is the part's row 7"),
    ],
    ids=["length", "not-finite", "failed-and-not-zero"],
)
def test_values_that_cannot_be_are_found(
    copy: Path, change: Callable[[np.ndarray, np.ndarray], None], message: str
) -> None:
    name = with_part(copy, change)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert name in words(result)
    assert message in words(result)


def test_encoding_again_finds_features_of_other_rows(copy: Path) -> None:
    def roll(features: np.ndarray, _: np.ndarray) -> None:
        features[:] = np.roll(features, 7, axis=0)

    name = with_part(copy, roll)
    assert name not in words(run("verify", copy)), "checksums alone cannot tell"
    result = run("verify", copy, "--deep", "--sample", 10)
    assert result.exit_code == 1
    assert name in words(result)
    assert "row 0 encoded again has cosine" in words(result)


def test_images_are_held_against_their_checksums(copy: Path) -> None:
    """Another picture in the tar, with a tar's checksum that agrees everywhere."""
    store, layout = Store.open(copy), Layout(copy)
    first, second = store.manifest.shards[:2]
    path = layout.shard(first.name)
    data = bytearray(path.read_bytes())
    data[store.samples["image_offset"][2].as_py() + 50] ^= 0xFF
    path.write_bytes(data)
    receipt = layout.shard_receipt(first.name)
    receipt.write_text(receipt.read_text().replace(first.sha256, file_digest(path)))
    shards = (replace(first, sha256=file_digest(path)), second, *store.manifest.shards[2:])
    write_manifest(replace(store.manifest, shards=shards), layout)
    result = run("verify", copy, "--deep", "--sample", 0)
    assert result.exit_code == 1
    assert f"the image {store.samples['key'][2]} has another sha256 than samples.arrow says" in words(result)


def test_tables_that_disagree_are_found(copy: Path) -> None:
    store, layout = Store.open(copy), Layout(copy)
    owners = store.captions["sample"].to_numpy().copy()
    owners[90] += 1
    captions = {"text": store.captions["text"].to_pylist(), "sample": owners}
    beyond = {"caption": np.array([0, 400]), "sample": np.array([0, 80])}
    for path, schema, columns in (
        (layout.captions, tables.CAPTIONS, captions),
        (layout.relevance, tables.RELEVANCE, beyond),
    ):
        with tables.table_writer(path, schema) as writer:
            table = pa.table(columns, schema=schema)
            for shard in store.manifest.shards:  # a batch a shard; those of the truth are of whole splits
                writer.write_table(table.slice(shard.first_caption, shard.captions))
    files = {name: file_digest(copy / name) for name in store.manifest.files}
    write_manifest(replace(store.manifest, files=files), layout)
    result = run("verify", copy)
    assert result.exit_code == 1
    shown = words(result)
    assert "rows of train-000001 are not those of its tar, in the columns sample" in shown
    assert "rows that the store does not have in the column caption" in shown
    assert "rows that the store does not have in the column sample" in shown


def test_sums_that_disagree_are_found(copy: Path) -> None:
    store, layout = Store.open(copy), Layout(copy)
    last = store.manifest.shards[-1]
    shards = (*store.manifest.shards[:-1], replace(last, captions=last.captions + 1))
    write_manifest(replace(store.manifest, shards=shards), layout)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "captions 20, the manifest says 21" in words(result)


def test_a_teacher_that_is_not_the_stored_one_is_refused(odd_store: Store, tmp_path: Path) -> None:
    root = Path(shutil.copytree(odd_store.root, tmp_path / "store"))
    manifest = odd_store.manifest
    other = {slug: replace(teacher, fingerprint="0" * 64) for slug, teacher in manifest.teachers.items()}
    write_manifest(replace(manifest, features=other), Layout(root))
    for arguments in (["verify", root, "--deep"], ["neighbours", root, "--text", "a cat"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "is not the one that made" in words(result)
        assert "expected 000000000000" in words(result)


# --- neighbours


def test_the_neighbours_of_a_row_are_the_nearest(scenes_store: Store) -> None:
    features = scenes_store.features("hog-color").gather(scenes_store.rows("test", "sample")).astype(np.float32)
    first = int(scenes_store.rows("test", "sample")[0])
    similarity = features @ features[3]
    expected = [row for row in np.argsort(-similarity) if row != 3][:4]
    shown = words(run("neighbours", scenes_store.root, "--row", first + 3, "-k", 4))
    assert "nearest images of test, by hog-color" in shown
    places = [shown.index(f"{similarity[row]:.4f} {first + row} {first + row}") for row in expected]
    assert places == sorted(places)
    assert scenes_store.captions["text"][5 * (first + int(expected[0]))].as_py() in shown


def test_the_neighbours_of_a_new_text_and_a_new_image(scenes_store: Store, tmp_path: Path) -> None:
    text = scenes_store.captions["text"][17].as_py()
    shown = words(run("neighbours", scenes_store.root, "--text", f"  {text} ", "-k", 1))
    assert "nearest captions of train, by minilm" in shown
    assert f"1 1.0000 17 3 000000003 train-3 {text}" in shown
    (tmp_path / "query.png").write_bytes(scenes_store.images[70])
    image = words(run("neighbours", scenes_store.root, "--image", tmp_path / "query.png", "--split", "test", "-k", 1))
    assert "1 1.0000 70 70" in image
    table = run("neighbours", scenes_store.root, "--row", 3, "--split", "train", "-k", 47).output
    assert max(float(found) for found in re.findall(r"\b[01]\.\d{4}\b", table)) <= 1
    caption = words(run("neighbours", scenes_store.root, "--row", 17, "--modality", "text", "-k", 2))
    assert "nearest captions of train, by minilm" in caption


def test_neighbours_leave_out_rows_that_failed_and_show_texts_as_they_are(odd_store: Store) -> None:
    shown = words(run("neighbours", odd_store.root, "--text", "cat", "-k", 50))
    assert "a centre that fails" not in shown
    assert "<script>alert('x')</script>" in shown
    assert "[red]not markup[/red] \N{REPLACEMENT CHARACTER}[31m and \N{REPLACEMENT CHARACTER}turned" in shown
    failed = odd_store.captions["text"].to_pylist().index("a centre that fails")
    result = run("neighbours", odd_store.root, "--row", failed, "--modality", "text")
    assert result.exit_code == 2
    assert f"has no features of row {failed}" in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name one of --row, --text and --image"),
        (["--row", "1", "--text", "a"], "Name one of --row, --text and --image"),
        (["--row", "80"], "Row 80 of hog-color was asked for; it has rows 0 to 79"),
        (["--row", "-1"], "it has rows 0 to 79"),
        (["--row", "1", "--teacher", "dino"], "no features 'dino'; it has hog-color, minilm"),
        (["--row", "1", "--modality", "image", "--teacher", "minilm"], "minilm is a teacher of texts"),
        (["--text", "a dog", "--teacher", "hog-color"], "hog-color is a teacher of images, and the query is of texts"),
        (["--text", "a dog", "--modality", "image"], "it says what --row counts"),
        (["--text", " "], "--text is empty"),
        (["--image", "absent.png"], "The image absent.png cannot be read"),
        (["--image", __file__], "cannot be read (UnidentifiedImageError"),
        (["--row", "1", "--split", "dev"], "no split 'dev'; it has train, val, test"),
    ],
    ids=[
        "nothing",
        "two-queries",
        "row-too-large",
        "row-negative",
        "unknown-teacher",
        "other-modality",
        "text-of-an-image-teacher",
        "modality-of-a-text",
        "empty-text",
        "absent-image",
        "no-image",
        "unknown-split",
    ],
)
def test_mistakes_in_neighbours(scenes_store: Store, arguments: list[str], message: str) -> None:
    result = run("neighbours", scenes_store.root, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


# --- missing


def scored(store: Store, split: str) -> dict[tuple[int, int], tuple[float, float]]:
    """Return, by a loop over all pairs of samples, the similarities of the nearest captions and of the images."""
    samples = store.rows(split, "sample")
    images = store.features("hog-color").gather(samples).astype(np.float32)
    captions = store.features("minilm").gather(store.rows(split, "caption")).astype(np.float32)
    first, found = samples[0], {}
    for a in range(len(samples)):
        for b in range(a + 1, len(samples)):
            text = float((captions[5 * a : 5 * a + 5] @ captions[5 * b : 5 * b + 5].T).max())
            found[int(first + a), int(first + b)] = text, float(images[a] @ images[b])
    return found


def test_missing_lists_the_best_pairs_of_all(scenes_store: Store, tmp_path: Path) -> None:
    before = content(scenes_store.root)
    result = run(
        "missing", scenes_store.root, "--count", 60, "--neighbours", 240, "--html", 5, "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert content(scenes_store.root) == before
    listed = pq.read_table(tmp_path / "out" / "missing.parquet").to_pylist()
    assert len(listed) == 60
    assert [row["score"] for row in listed] == sorted((row["score"] for row in listed), reverse=True)
    everything = scored(scenes_store, "train")
    pairs = [tuple(sorted((row["sample_row"], row["image_row"]))) for row in listed]
    assert len(set(pairs)) == 60, "each two samples once"
    for pair, row in zip(pairs, listed, strict=True):
        assert (row["text_similarity"], row["image_similarity"]) == pytest.approx(everything[pair], abs=1e-3)
    # All neighbours were looked at, so no other pair may score higher; the score is linear in both similarities.
    facts = np.array([[row["text_similarity"], row["image_similarity"], 1] for row in listed])
    weights, *_ = np.linalg.lstsq(facts, np.array([row["score"] for row in listed]), rcond=None)
    others = [np.array([*everything[pair], 1]) @ weights for pair in everything.keys() - set(pairs)]
    assert max(others) <= listed[-1]["score"] + 1e-2
    texts, owners = scenes_store.captions["text"].to_pylist(), scenes_store.captions["sample"].to_pylist()
    true = set(zip(*(scenes_store.relevance[name].to_pylist() for name in ("caption", "sample")), strict=True))
    for row in listed:
        assert (texts[row["caption_row"]], owners[row["caption_row"]]) == (row["caption"], row["sample_row"])
        assert (texts[row["nearest_caption_row"]], owners[row["nearest_caption_row"]]) == (
            row["nearest_caption"],
            row["image_row"],
        )
        assert len(row["caption"]) <= len(row["nearest_caption"])
        assert row["relevant"] == ((row["caption_row"], row["image_row"]) in true)
        assert 0 <= row["text_percentile"] <= 100
    hits = np.mean([row["relevant"] for row in listed])
    shown = words(result)
    assert f"precision of all 60 {hits:.1%}" in shown
    base = len([1 for caption, sample in true if caption < 240 and owners[caption] != sample]) / (240 * 47)
    assert f"precision of random pairs {base:.1%}" in shown
    assert hits > 5 * base
    page = (tmp_path / "out" / "missing.html").read_text()
    assert page.count("<article>") == 5
    assert page.count("data:image/jpeg;base64,") == 10
    assert "://" not in page, "nothing is loaded from elsewhere"


def test_missing_shows_hostile_captions_as_text_and_marks_duplicates(odd_store: Store) -> None:
    result = run("missing", odd_store.root)
    assert result.exit_code == 0, result.output
    folder = odd_store.root.parent / "store-missing-train"
    listed = pq.read_table(folder / "missing.parquet").to_pylist()
    flags = {
        tuple(sorted((row["sample_row"], row["image_row"]))): (row["identical_caption"], row["identical_image"])
        for row in listed
    }
    assert flags[0, 1] == (True, False)
    assert flags[0, 2] == (False, True)
    assert not any(any(flag) for pair, flag in flags.items() if pair not in ((0, 1), (0, 2)))
    assert not any(3 in pair for pair in flags), "nothing is known of a sample that the teacher failed on"
    assert all(row["relevant"] is None for row in listed)
    page = (folder / "missing.html").read_text()
    assert "<script" not in page
    assert html.escape("<script>alert(") in page
    assert "precision" not in result.output
    before = (folder / "missing.parquet").read_bytes()
    assert run("missing", odd_store.root).exit_code == 0, "its own output is written again"
    assert (folder / "missing.parquet").read_bytes() == before


def test_stores_beside_each_other_keep_a_list_each(
    odd_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        monkeypatch.chdir(shutil.copytree(odd_store.root, tmp_path / name))
        assert run("missing", ".", "--html", 0).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-missing-train", "two", "two-missing-train"]


def test_missing_writes_to_no_folder_of_others(scenes_store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "missing.html").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(scenes_store.root, target_is_directory=True)
    for out, message in (
        (tmp_path / "mine", "expected an earlier list of missing matches"),
        (tmp_path / "file", "expected an earlier list of missing matches"),
        (scenes_store.root / "missing", "lies in the store"),
        (tmp_path / "link" / "missing", "lies in the store"),
    ):
        result = run("missing", scenes_store.root, "--out", out)
        assert result.exit_code == 2
        assert message in words(result)
    assert (tmp_path / "mine" / "missing.html").read_text() == "mine"
    result = run("missing", scenes_store.root, "--split", "dev")
    assert result.exit_code == 2
    assert "no split 'dev'" in words(result)


def test_the_nearest_captions_of_uneven_runs_are_those_of_a_loop(odd_store: Store) -> None:
    evidence = Evidence(odd_store, default_slug(odd_store, "image"), default_slug(odd_store, "text"))
    random = np.random.default_rng(1)
    one, other = random.integers(0, len(odd_store.samples), (2, 40))
    similarity, ours, theirs = evidence.nearest_captions(evidence.captions(one), evidence.captions(other))
    table = odd_store.features(evidence.text_slug).gather(odd_store.rows("train", "caption")).astype(np.float32)
    assert not table.any(axis=1).all(), "one row failed"
    owners = odd_store.captions["sample"].to_numpy()
    for place in range(40):
        pairs = [
            (float(table[a] @ table[b]), a, b)
            for a in np.flatnonzero(owners == one[place])
            for b in np.flatnonzero(owners == other[place])
            if table[a].any() and table[b].any()
        ]
        if not pairs:
            assert np.isnan(similarity[place])
            continue
        assert similarity[place] == pytest.approx(max(pairs)[0], abs=1e-5)
        assert float(table[ours[place]] @ table[theirs[place]]) == pytest.approx(max(pairs)[0], abs=1e-5)
        assert (owners[ours[place]], owners[theirs[place]]) == (one[place], other[place])


def test_chunks_hold_all_places_within_the_budget() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, 500)
    chunks = list(_chunks(sizes, 100))
    assert sorted(np.concatenate(chunks)) == list(range(500))
    assert all(len(chunk) * sizes[chunk].max() <= 100 for chunk in chunks)
    assert [len(chunk) for chunk in _chunks(np.array([500, 500]), 100)] == [1, 1], "the too large come alone"
    assert Runs(np.array([3, 7]), np.array([1, 3])).rows().tolist() == [[3, 3, 3], [7, 8, 9]]


def test_columns_are_read_across_chunks() -> None:
    column = Column(pa.chunked_array([[0, 1, 2], [], [3], [4, 5]], type=pa.int64()))
    assert len(column) == 6
    assert column.numbers(np.array([5, 0, 3, 3, 2])).tolist() == [5, 0, 3, 3, 2]
    assert column.values(np.array([4, 2])) == [4, 2]
    for first in range(7):
        for count in range(7 - first):
            assert column.run(first, count).to_pylist() == list(range(first, first + count))


# --- the command


def test_the_command_in_a_process_of_its_own(scenes_store: Store) -> None:
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from pipeline.inspection.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "verify", str(scenes_store.root)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Everything holds." in done.stdout
    assert "Everything" not in done.stderr


def test_help_names_every_command() -> None:
    assert isinstance(main, click.Group)
    assert set(main.commands) >= {"info", "verify", "neighbours", "missing"}
    assert "..." not in run("--help").output.partition("Commands:")[2], "no summary is cut off"


def test_texts_of_others_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\n d\0") == (
        "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c d\N{REPLACEMENT CHARACTER}"
    )
    assert printable("👩\u200d🔬 שלום") == "👩\u200d🔬 שלום"
