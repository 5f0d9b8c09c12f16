"""Ingest of real files: both caption formats, every kind of bad record, resuming and repairing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from conftest import content, small_scenes
from PIL import Image
from refusals import refused

from pipeline.extract import extract
from stores import ExtractParameters, SourceError, Store, StoreError
from stores.errors import TooManyRejectedError
from stores.layout import Layout
from stores.parameters import Data, Extract


def jpeg(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def karpathy(folder: Path, entries: list[dict[str, Any]]) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset": "tiny", "images": entries}))
    return path


def entry(number: int, *captions: str, split: str = "train", name: str | None = None) -> dict[str, Any]:
    sentences = [{"raw": caption} for caption in captions or (f"picture {number}", f"the {number}. picture")]
    return {"filename": name or f"{number}.jpg", "cocoid": number, "split": split, "sentences": sentences}


def parameters(source: Any, bad: float = 0.05, merge: Any = "path", **extract_settings: Any) -> ExtractParameters:
    return ExtractParameters(
        data=Data(source=source, max_bad_fraction=bad, max_pixels=10_000, merge=merge),
        extract=Extract(workers=0, **{"shard_size": 3, **extract_settings}),
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of seven good pictures, of all formats and upright or turned."""
    for number in range(4):
        jpeg(tmp_path / f"{number}.jpg", seed=number)
    jpeg(tmp_path / "4.png", seed=4)
    jpeg(tmp_path / "5.webp", seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg(tmp_path / "6.jpg", seed=6, exif=exif)
    return tmp_path


def good_entries() -> list[dict[str, Any]]:
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.png", "5.webp", "6.jpg"]
    splits = ["train", "test", "restval", "train", "val", "train", "test"]
    return [entry(n, split=split, name=name) for n, (name, split) in enumerate(zip(names, splits, strict=True))]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_karpathy_becomes_a_store_that_webdataset_reads(pictures: Path) -> None:
    store_path = pictures / "store"
    extract(parameters(str(karpathy(pictures, good_entries()))), store_path)
    store = Store.open(store_path)
    assert store.manifest.splits == ("train", "val", "test")
    ids = store.samples["source_id"].to_pylist()
    assert ids == ["0", "2", "3", "5", "4", "1", "6"]
    for row, source_id in enumerate(ids):
        name = next(e["filename"] for e in good_entries() if str(e["cocoid"]) == source_id)
        assert store.images[row] == (pictures / name).read_bytes()
    assert store.samples["width"].to_pylist()[-1] == 30, "EXIF orientation 6 turns 40 × 30 into 30 × 40"
    assert store.captions["text"].to_pylist()[2:4] == ["picture 2", "the 2. picture"]
    shards = [str(path) for path in sorted((store_path / "shards").glob("train-*.tar"))]
    seen = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["json"]["source_id"] for sample in seen] == ids[:4]
    assert {next(key for key in sample if key in ("jpg", "png", "webp")) for sample in seen} == {"jpg", "webp"}
    assert all("." not in sample["__key__"] for sample in seen)


def test_features_are_those_of_each_row(pictures: Path) -> None:
    from models.teachers import load_teacher
    from stores.images import decode_rgb

    store_path = pictures / "store"
    extract(parameters(str(karpathy(pictures, good_entries()))), store_path)
    store = Store.open(store_path)
    image, text = load_teacher("hog-color"), load_teacher("minilm", device="cpu", precision="fp32")
    for row in range(7):
        batch = image.collate([image.preprocess(decode_rgb(store.images[row]))])
        assert_near(image.encode(batch)[0].numpy(), store.features("hog-color").gather(np.array([row]))[0])
    for row, caption in enumerate(store.captions["text"].to_pylist()):
        assert_near(
            text.encode(text.collate(text.prepare([caption])))[0].numpy(),
            store.features("minilm").gather(np.array([row]))[0],
        )
    test = store.rows("test", "sample")
    _, found = store.index("hog-color", "test").search(store.features("hog-color").gather(test), 1)
    assert found[:, 0].tolist() == test.tolist()


def assert_near(expected: np.ndarray, stored: np.ndarray) -> None:
    np.testing.assert_allclose(expected / np.linalg.norm(expected), stored, atol=2e-3)


def test_coco_files_one_a_split(pictures: Path) -> None:
    files = {}
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        files[split] = str(pictures / f"captions_{split}.json")
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in numbers]
        annotations = [{"image_id": n, "id": 10 * n + k, "caption": f"{n}, {k} "} for k in range(2) for n in numbers]
        Path(files[split]).write_text(json.dumps({"images": images, "annotations": annotations}))
    extract(parameters(files), pictures / "store")
    store = Store.open(pictures / "store")
    assert store.samples["source_id"].to_pylist() == ["0", "1", "2", "3"]
    assert store.captions["text"].to_pylist() == ["0, 0", "0, 1", "1, 0", "1, 1", "2, 0", "2, 1", "3, 0", "3, 1"]


def test_coco_ids_may_begin_anew_in_each_split(pictures: Path) -> None:
    files = {}
    (pictures / "val2014").mkdir()
    jpeg(pictures / "val2014" / "COCO_val2014_000.jpg", seed=9)
    for split, name in (("train", "0.jpg"), ("val", "COCO_val2014_000.jpg")):
        files[split] = str(pictures / f"{split}.json")
        images, annotations = [{"id": 0, "file_name": name}], [{"image_id": 0, "caption": split}]
        Path(files[split]).write_text(json.dumps({"images": images, "annotations": annotations}))
    extract(parameters(files), pictures / "store")
    assert Store.open(pictures / "store").captions["text"].to_pylist() == ["train", "val"]


def test_each_kind_of_bad_record_is_quarantined_with_its_reason(pictures: Path) -> None:
    whole = (pictures / "3.jpg").read_bytes()
    (pictures / "10.jpg").write_bytes(b"<html>not found</html>")
    (pictures / "11.jpg").write_bytes(whole[: len(whole) // 2])
    jpeg(pictures / "12.jpg", size=(200, 100))
    Image.new("RGB", (8, 8)).save(pictures / "13.bmp")
    (pictures / "14.jpg").touch()
    bad = [
        entry(9),
        entry(10),
        entry(11),
        entry(12),
        entry(13, name="13.bmp"),
        entry(14),
        entry(15, "", "  \n", name="0.jpg"),
        entry(16, "kept", " ", name="1.jpg"),
        entry(3),
        entry(18, name="../../etc/passwd"),
        {"cocoid": 19, "split": "train"},
        entry(20, name="bad\0name.jpg"),
    ]
    store_path = pictures / "store"
    extract(parameters(str(karpathy(pictures, good_entries() + bad)), bad=0.9, merge="none"), store_path)
    lines = [json.loads(line) for line in Layout(store_path).quarantine.read_text().splitlines()]
    reasons = {(line["source_id"], line["reason"]) for line in lines if "caption" not in line}
    assert reasons == {
        ("9", "missing-file"),
        ("10", "unreadable-image"),
        ("11", "truncated-image"),
        ("12", "too-many-pixels"),
        ("13", "unknown-format"),
        ("14", "unreadable-image"),
        ("15", "no-captions"),
        ("3", "duplicate-id"),
        ("18", "path-outside"),
        ("19", "malformed-record"),
        ("20", "unreadable-file"),
    }
    captions = [(line["source_id"], line["reason"], line["caption"]) for line in lines if "caption" in line]
    assert captions == [("15", "empty-caption", 0), ("15", "empty-caption", 1), ("16", "empty-caption", 1)]
    store = Store.open(store_path)
    assert store.samples["source_id"].to_pylist() == ["0", "2", "3", "5", "16", "4", "1", "6"]
    assert "kept" in store.captions["text"].to_pylist()


def test_damaged_exif_and_cut_off_emoji_are_quarantined(pictures: Path) -> None:
    """One byte of a JPEG's header after another is damaged: each picture is kept or rejected, never a traceback."""
    whole = (pictures / "6.jpg").read_bytes()
    entries = []
    for place in range(200):
        (pictures / f"h{place}.jpg").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        entries.append(entry(1000 + place, name=f"h{place}.jpg"))
    path = karpathy(pictures, [*good_entries(), *entries, entry(3000, "cut \ud83d", "whole", name="0.jpg")])
    extract(parameters(str(path), bad=1.0, merge="none", shard_size=100), pictures / "store")
    lines = [json.loads(line) for line in Layout(pictures / "store").quarantine.read_text().splitlines()]
    assert ("3000", "not-unicode", 0) in {(line["source_id"], line["reason"], line.get("caption")) for line in lines}
    rejected = {line["source_id"] for line in lines if "caption" not in line}
    kept = set(Store.open(pictures / "store").samples["source_id"].to_pylist())
    assert rejected | kept == {str(e["cocoid"]) for e in good_entries() + entries} | {"3000"}
    assert not rejected & kept
    assert len(rejected) > 5


@pytest.mark.parametrize("split", ["../../evil", "dev set", "a/b", ""], ids=["above", "blank", "slash", "empty"])
def test_a_split_s_name_never_leads_out_of_the_store(pictures: Path, split: str) -> None:
    path = karpathy(pictures, [*good_entries(), entry(0, split=split)])
    with pytest.raises(SourceError, match="cannot name a split"):
        extract(parameters(str(path)), pictures / "store")


def test_a_folder_that_is_no_store_is_left_alone(pictures: Path) -> None:
    mine = pictures / "mine" / "shards" / "train-000000.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(StoreError, match="is not empty and no store of ours"):
        extract(parameters(str(karpathy(pictures, good_entries()))), pictures / "mine")
    assert content(pictures / "mine") == {"shards/train-000000.tar": b"mine"}


def test_too_much_bad_stops_the_run_and_says_what(pictures: Path) -> None:
    source = karpathy(pictures, [*good_entries(), entry(9), entry(10)])
    listed, expected = Layout(pictures / "store").quarantine, "at most 5% of 9 (data.max_bad_fraction)"
    with refused(TooManyRejectedError, path=listed, where="samples", found=2, expected=expected) as caught:
        extract(parameters(str(source)), pictures / "store")
    assert "\n  missing-file 2, first '9': " in caught.value.format_message()
    assert not Layout(pictures / "store").manifest.exists()
    assert Layout(pictures / "store").quarantine.read_text().count("missing-file") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no JSON object in its first items; expected a list of them"),
        ('{"pictures": []}', "has the keys pictures"),
        ('{"images": [{"filename": "a.jpg"}]}', r"images\[0\] has no split"),
        ('{"images": [], "annotations": []}', "Say which split each file is"),
        ('{"images": []}', "holds no records"),
    ],
    ids=["not-json", "list", "unknown-keys", "no-split", "coco-without-split", "no-records"],
)
def test_a_wrong_captions_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        extract(parameters(str(path)), tmp_path / "store")
    with pytest.raises(SourceError, match="cannot be read"):
        extract(parameters(str(tmp_path / "absent.json")), tmp_path / "store")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        extract(small_scenes(), tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    extract(small_scenes(), tmp_path)
    before = content(tmp_path)
    again = extract(small_scenes(), tmp_path)
    assert again.made == {}
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("victim", "made"),
    [
        ("shards/train-000001.tar", {"shards/train-000001"}),
        ("shards/val-000000.json", {"shards/val-000000"}),
        ("features/tiny_teachers-length/train-000002.h5", {"features/tiny_teachers-length/train-000002"}),
        ("indices/tiny_teachers-mean_colour/test.faiss", {"indices/tiny_teachers-mean_colour/test"}),
        ("indices/tiny_teachers-mean_colour/test.json", {"indices/tiny_teachers-mean_colour/test"}),
        ("samples.arrow", {"samples.arrow"}),
        ("captions.arrow", {"captions.arrow"}),
        ("relevance.arrow", {"relevance.arrow"}),
        ("caption_pairs.arrow", {"caption_pairs.arrow"}),
        ("quarantine.jsonl", {"quarantine.jsonl"}),
        ("manifest.json", {"manifest.json"}),
        ("store.txt", {"store.txt"}),
    ],
    ids=[
        "shard",
        "receipt",
        "part",
        "index",
        "card",
        "samples",
        "captions",
        "relevance",
        "caption-pairs",
        "quarantine",
        "manifest",
        "mark",
    ],
)
@pytest.mark.parametrize("harm", ["delete", "truncate", "flip"])
def test_the_next_run_repairs_just_what_was_hurt(tmp_path: Path, victim: str, made: set[str], harm: str) -> None:
    given = replace(small_scenes(train=40, val=4, test=6), teachers=tiny_teachers())
    extract(given, tmp_path)
    whole, path = content(tmp_path), tmp_path / victim
    data = path.read_bytes()
    if harm == "delete":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif data:
        # Of an HDF5 part, the middle is feature data.
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    again = extract(given, tmp_path)
    # Nothing was rejected here, so the list of what was is empty, and can only be deleted.
    assert set(again.made) == (made if data or harm == "delete" else set())
    assert content(tmp_path) == whole


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    extract(small_scenes(), tmp_path / "whole")
    extract(small_scenes(), tmp_path / "cut")
    layout = Layout(tmp_path / "cut")
    layout.manifest.unlink()
    layout.features("hog-color", "test-000001").unlink()
    (tmp_path / "cut" / "features" / "hog-color" / "test-000001.h5.tmp-99").write_bytes(b"half")
    again = extract(small_scenes(), tmp_path / "cut")
    assert set(again.made) == {"features/hog-color/test-000001", "manifest.json"}
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_smaller_source_leaves_nothing_stale(tmp_path: Path) -> None:
    """Parts of shards that stay are kept as they are; encoded in other batches they might differ in their last bits."""
    stores = []
    extract(small_scenes(), tmp_path / "store")
    for name in ("store", "fresh"):
        extract(small_scenes(train=16, val=12, test=0), tmp_path / name)
        stores.append(Store.open(tmp_path / name))
    one, other = (content(store.root) for store in stores)
    assert one.keys() == other.keys()
    assert all(one[name] == other[name] for name in one if not name.startswith(("features", "indices", "manifest")))
    for slug in ("hog-color", "minilm"):
        kept, fresh = (store.features(slug) for store in stores)
        rows = np.arange(len(kept))
        # Where the processor has bf16, other batches round by up to 2⁻⁹ of a number.
        cosines = np.einsum("nd,nd->n", kept.gather(rows).astype(float), fresh.gather(rows).astype(float))
        assert cosines.min() > 0.9995


def test_real_pictures_in_both_formats_are_the_same_data(shared_data: Path, tmp_path: Path) -> None:
    mini = shared_data / "coco-mini"
    files = {split: str(mini / f"captions_{split}.json") for split in ("train", "val", "test")}
    stores = []
    for name, source in (("karpathy", str(mini / "dataset_karpathy.json")), ("coco", files)):
        data = Data(source=source)
        extract(ExtractParameters(data=data, extract=Extract(workers=0), teachers=tiny_teachers()), tmp_path / name)
        stores.append(Store.open(tmp_path / name))
    for store in stores:
        assert [len(store.rows(split, "sample")) for split in ("train", "val", "test")] == [600, 201, 201]
        captions = store.captions["text"].to_pylist()
        assert len(captions) >= 5000
        assert sum(store.samples["caption_count"].to_pylist()) == len(captions)
    for column in ("source_id", "image_sha256"):
        one, other = (set(store.samples[column].to_pylist()) for store in stores)
        assert one == other


def test_another_teacher_adds_a_folder_and_touches_nothing_else(tmp_path: Path) -> None:
    extract(small_scenes(), tmp_path)
    before = content(tmp_path)
    other = replace(small_scenes(), teachers=tiny_teachers())
    extract(other, tmp_path)
    after = content(tmp_path)
    added = {name for name in after if name not in before}
    assert {name.split("/")[1] for name in added} == {"tiny_teachers-mean_colour", "tiny_teachers-length"}
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    assert set(Store.open(tmp_path).manifest.teachers) == {
        "hog-color",
        "minilm",
        "tiny_teachers-mean_colour",
        "tiny_teachers-length",
    }
    (tmp_path / "features" / "minilm" / "val-000000.h5").write_bytes(b"junk")
    extract(other, tmp_path)
    assert "minilm" not in Store.open(tmp_path).manifest.teachers, "a damaged teacher is not passed on as whole"
    assert (tmp_path / "features" / "minilm" / "test-000000.h5").exists(), "what is whole is kept for a later run"


def test_a_killed_change_of_teacher_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(replace(small_scenes(), teachers=tiny_teachers()), tmp_path)
    changed = replace(tiny_teachers(), text_weights="other")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.feature_sets.extract_features", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(replace(small_scenes(), teachers=changed), tmp_path)
    assert set(Store.open(tmp_path).manifest.teachers) == {"tiny_teachers-mean_colour"}


def tiny_teachers() -> Any:
    from stores.parameters import Teachers

    return Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")


def test_bytes_that_are_no_image_never_reach_the_shards() -> None:
    from pipeline.shards import check_image
    from pipeline.sources import Rejected

    for data in (b"", b"GIF89a", io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"\0" * 50).getvalue()):
        with pytest.raises(Rejected, match="unreadable-image"):
            check_image(data, 10_000)
