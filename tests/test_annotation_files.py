"""COCO's and Karpathy's captions documents as people have them: what is kept, and what is listed as lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from test_ingest import entry, good_entries, jpeg, karpathy, parameters, pictures  # noqa: F401

from pipeline.extract import extract
from pipeline.sources import BadRecord, Record, Rejected, open_source
from stores import SourceError, Store
from stores.layout import Layout
from stores.parameters import Data

CASES = SHARED.parent / "cases"


def read(source: Any, **settings: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[str, int]]]:
    """Every record's captions (or why it is none) by its id; every bad record's reason and captions lost with it."""
    kept: dict[str, tuple[Any, ...]] = {}
    lost: dict[str, tuple[str, int]] = {}
    opened = open_source(Data(source=source, **settings))
    for split in opened.splits:
        for record in opened.records(split):
            assert record.source_id not in kept.keys() | lost.keys()
            if isinstance(record, Record):
                kept[record.source_id] = tuple(c.reason if isinstance(c, Rejected) else c for c in record.captions)
            else:
                assert isinstance(record, BadRecord)
                lost[record.source_id] = (record.rejected.reason, record.captions)
    return kept, lost


def details(path: str) -> list[str]:
    records = open_source(Data(source={"train": path})).records("train")
    return [record.rejected.detail for record in records if isinstance(record, BadRecord)]


def coco(folder: Path, images: list[Any], annotations: list[Any], name: str = "captions.json") -> str:
    (folder / name).write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return str(folder / name)


def image(number: Any, name: str = "") -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg"}


def says(number: Any, caption: Any) -> dict[str, Any]:
    return {"image_id": number, "id": 1, "caption": caption}


@pytest.mark.parametrize(
    ("name", "samples", "captions", "reasons", "lost"),
    [
        ("orphans.json", 25, 125, {"unlisted-image": 15}, 75),
        ("float_ids.json", 40, 200, {}, 0),
        ("one_null.json", 40, 199, {}, 0),
        ("one_no_image_id.json", 40, 199, {"malformed-record": 1}, 1),
    ],
    ids=["orphans", "float-ids", "one-null", "one-no-image-id"],
)
def test_the_cases_that_people_sent(
    shared_data: Path, name: str, samples: int, captions: int, reasons: dict[str, int], lost: int
) -> None:
    if not CASES.is_dir():
        pytest.skip("needs the inputs in ../shared/cases, which are not part of the project")
    source = open_source(Data(source={"train": str(CASES / name)}, images=str(shared_data / "coco-mini" / "images")))
    records = list(source.records("train"))
    good = [record for record in records if isinstance(record, Record)]
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert len(good) == samples
    assert sum(isinstance(text, str) for record in good for text in record.captions) == captions
    assert Counter(record.rejected.reason for record in bad) == reasons
    assert sum(record.captions for record in bad) == lost
    assert all(record.image.read().startswith(b"\xff\xd8") for record in good)


def test_captions_of_unlisted_images_are_counted_and_listed(tmp_path: Path) -> None:
    annotations = [says(1, "one"), *(says(9, f"nine {n}") for n in range(5)), says("nowhere.jpg", ["a", "b"])]
    path = coco(tmp_path, [image(1)], annotations)
    assert read({"train": path}) == (
        {"1": ("one",)},
        {"9": ("unlisted-image", 5), "nowhere.jpg": ("unlisted-image", 2)},
    )
    assert "image_id 9 of annotations[1], annotations[2], annotations[3] and 2 more: 5 captions" in details(path)[0]


def test_the_store_lists_what_is_lost(pictures: Path) -> None:  # noqa: F811
    annotations = [says(0, "kept"), says(0, None), says(7, "lost"), says(7, "lost too"), {"id": 5, "caption": "whose"}]
    source = {"train": coco(pictures, [image(0), image(1), image(1)], annotations)}
    extract(parameters(source, bad=1.0), pictures / "store")
    lines = [json.loads(line) for line in Layout(pictures / "store").quarantine.read_text().splitlines()]
    assert sorted((line["source_id"], line["reason"], line.get("caption")) for line in lines) == [
        ("0", "empty-caption", 1),
        ("1", "no-captions", None),
        ("1", "no-captions", None),
        ("7", "unlisted-image", None),
        ("annotations[4]", "malformed-record", None),
    ]
    assert Store.open(pictures / "store").captions["text"].to_pylist() == ["kept"]


@pytest.mark.parametrize(
    ("listed", "called"),
    [
        (5, "5"),
        ("5", 5),
        (5.0, 5),
        ("5", 5.0),
        (5, "5.0"),
        (5, "000000000005"),
        ("005", 5),
        (-5.0, -5),
        (10**30, 10**30),
    ],
    ids=["text", "number", "float", "float-text", "decimal", "padded", "padded-list", "negative", "huge"],
)
def test_ids_are_joined_however_they_are_written(tmp_path: Path, listed: Any, called: Any) -> None:
    kept, lost = read({"train": coco(tmp_path, [image(listed, "a.jpg"), image(6)], [says(called, "x"), says(6, "y")])})
    assert (list(kept.values()), lost) == ([("x",), ("y",)], {})


@pytest.mark.parametrize(
    "called",
    ["COCO_x_000000000005.jpg", "val/COCO_x_000000000005.jpg", "COCO_x_000000000005"],
    ids=["name", "path", "stem"],
)
def test_an_image_id_may_be_the_file_s_name(tmp_path: Path, called: str) -> None:
    images = [image(1, "val/COCO_x_000000000005.jpg"), image(2, "b.jpg")]
    kept, lost = read({"train": coco(tmp_path, images, [says(called, "x"), says(2, "y")])})
    assert (kept, lost) == ({"1": ("x",), "2": ("y",)}, {})


def test_what_may_mean_several_images_is_joined_to_none(tmp_path: Path) -> None:
    images = [image("5", "a/x.jpg"), image("05", "b/x.jpg"), image(7, "8.jpg")]
    annotations = [says("5", "a"), says("05", "b"), says(5, "either"), says("x.jpg", "either"), says("8", "an id")]
    kept, lost = read({"train": coco(tmp_path, images, annotations)})
    assert kept == {"5": ("a",), "05": ("b",)}
    assert lost == {
        "7": ("no-captions", 0),
        "annotations[2]": ("unlisted-image", 1),
        "x.jpg": ("unlisted-image", 1),
        "8": ("unlisted-image", 1),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"image_id": None},
        {"image_id": True},
        {"image_id": float("nan")},
        {"image_id": 1.5},
        {"image_id": [1]},
        {"image_id": 2.0**53},
    ],
    ids=["absent", "null", "bool", "nan", "fraction", "list", "inexact"],
)
def test_an_annotation_without_an_id_is_lost_alone(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = coco(tmp_path, [image(1)], [{"caption": "whose?", **wrong}, says(1, "one"), says(1, "two")])
    assert read({"train": path}) == ({"1": ("one", "two")}, {"annotations[0]": ("malformed-record", 1)})
    assert "annotations[0] has " in details(path)[0]


def test_an_id_of_thousands_of_digits_does_not_cost_the_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    text = json.dumps({"images": [image(1)], "annotations": [says(1, "one"), says(777, "x")]})
    path.write_text(text.replace("777", "7" * 10_000))
    assert read({"train": str(path)}) == ({"1": ("one",)}, {"annotations[1]": ("malformed-record", 1)})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (says(1, None), "empty-caption"),
        (says(1, float("nan")), "empty-caption"),
        (says(1, []), "empty-caption"),
        (says(1, 5), "malformed-caption"),
        (says(1, {"x": 1}), "malformed-caption"),
        ({"image_id": 1, "text": "x"}, "malformed-caption"),
    ],
    ids=["null", "nan", "empty-list", "number", "object", "no-caption-key"],
)
def test_a_caption_that_is_none_costs_no_other(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    path = coco(tmp_path, [image(1)], [says(1, "one"), bad, says(1, "two")])
    assert read({"train": path}) == ({"1": ("one", reason, "two")}, {})
    (record,) = open_source(Data(source={"train": path})).records("train")
    assert isinstance(record, Record)
    assert "annotations[1]" in str(record.captions[1])


def test_images_that_cannot_be_taken_cost_no_other(tmp_path: Path) -> None:
    images = [
        *(image(1), None, {"file_name": "x.jpg"}, image(True, "x.jpg"), {"id": 4}, image(5), image(1, "other.jpg")),
        *({"id": 8}, image(8)),
    ]
    annotations = [says(1, "one"), says(4, "a"), says(4, "b"), says(8, "eight")]
    kept, lost = read({"train": coco(tmp_path, images, annotations)})
    assert kept == {"1": ("one",), "8": ("eight",)}, "an entry that names no file does not take another's id"
    assert lost == {
        "images[1]": ("malformed-record", 0),
        "images[2]": ("malformed-record", 0),
        "images[3]": ("malformed-record", 0),
        "4": ("malformed-record", 2),
        "5": ("no-captions", 0),
        "images[6]": ("duplicate-id", 0),
        "images[7]": ("duplicate-id", 0),
    }


def test_bad_entries_of_karpathy_s_file_are_lost_alone(tmp_path: Path) -> None:
    entries = [
        entry(1, "one", split="test"),
        {key: value for key, value in entry(2).items() if key != "split"},
        entry(3) | {"sentences": [{"raw": "three"}, {"tokens": ["x"]}, None, "plain", {"raw": None}]},
        None,
        entry(5) | {"split": 7},
        entry(6) | {"sentences": None},
        entry(7) | {"filename": float("nan")},
        {key: value for key, value in entry(8).items() if key != "sentences"},
        entry(9, "nine") | {"cocoid": 9.0},
        {**entry(10, "ten"), "cocoid": None, "imgid": 1},
        entry(11) | {"filepath": 3},
    ]
    kept, lost = read(str(karpathy(tmp_path, entries)))
    assert kept == {
        "3": ("three", "malformed-caption", "empty-caption", "plain", "empty-caption"),
        "9": ("nine",),
        "images[9]": ("ten",),
        "1": ("one",),
    }
    assert lost == {
        "2": ("malformed-record", 2),
        "images[3]": ("malformed-record", 0),
        "5": ("malformed-record", 2),
        "6": ("no-captions", 0),
        "7": ("malformed-record", 2),
        "8": ("no-captions", 0),
        "11": ("malformed-record", 2),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("instances_val2017.json", [{"image_id": 1, "bbox": [], "segmentation": []}], "captions_val2017.json instead"),
        ("person_keypoints_val2017.json", [{"image_id": 1, "keypoints": [1]}], "COCO's keypoints of persons"),
        ("panoptic_val2017.json", [{"image_id": 1, "segments_info": []}], "COCO's panoptic segments"),
        ("image_info_test2017.json", [], "images without captions, as COCO's image_info"),
        ("questions.json", [{"image_id": 1, "question": "?"}], "questions about pictures"),
        ("mine.json", [{"image_id": 1, "text": "a cat"}], "no captions, and have the keys image_id, text"),
    ],
    ids=["instances", "keypoints", "panoptic", "image-info", "questions", "other-key"],
)
@pytest.mark.parametrize("named", [True, False], ids=["split", "no-split"])
def test_annotations_that_are_no_captions(
    tmp_path: Path, name: str, content: list[Any], message: str, named: bool
) -> None:
    path = coco(tmp_path, [image(1)], content, name)
    with pytest.raises(SourceError, match=f"{name}: .*{message}"):
        open_source(Data(source={"train": path} if named else path))


def test_captions_without_images_and_karpathy_s_file_under_a_split_are_explained(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"annotations": [says(1, "one")]}))
    with pytest.raises(SourceError, match="does not list the images that their image_id is of"):
        open_source(Data(source={"train": str(tmp_path / "results.json")}))
    path = str(karpathy(tmp_path, good_entries()))
    with pytest.raises(SourceError, match="Name that one file, without a split"):
        open_source(Data(source={"train": path}))
    unsplit = str(karpathy(tmp_path, [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}]))
    with pytest.raises(SourceError, match=r"images\[0\] has no split, nor has any other"):
        open_source(Data(source=unsplit))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_documents_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    entries = [{"filename": "ä.jpg", "split": "train", "sentences": [{"raw": "größer\x01"}]}]
    (tmp_path / "dataset.json").write_bytes(json.dumps({"images": entries}, ensure_ascii=False).encode(encoding))
    assert read(str(tmp_path / "dataset.json")) == ({"ä.jpg": ("größer\x01",)}, {})


def test_bytes_that_are_no_text_cost_one_caption(tmp_path: Path) -> None:
    path = coco(tmp_path, [image(1)], [says(1, "caf_"), says(1, "good")])
    Path(path).write_bytes(Path(path).read_bytes().replace(b"caf_", b"caf\xe9"))
    assert read({"train": path})[0] == {"1": ("caf\udce9", "good")}
    assert read({"train": path}, encoding="cp1252")[0] == {"1": ("café", "good")}
