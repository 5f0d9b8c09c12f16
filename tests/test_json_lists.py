"""JSON lists of records, alone or in an object: read as tables, piece by piece, in bounded memory."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED

from pipeline.sources import BadRecord, Record, Rejected, json_documents, open_source
from pipeline.sources.image_files import ImageFile
from pipeline.sources.json_documents import pieces
from pipeline.sources.places import find
from stores import SourceError
from stores.parameters import Columns, Data

CASES = SHARED.parent / "cases"


def written(path: Path, content: Any, **options: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content, **options))
    return str(path)


def rows(source: Any, split: str = "train", **settings: Any) -> list[tuple[str, Any, Any]]:
    """Each record's id, image and captions; a bad one's id, reason and detail."""
    opened = open_source(Data(source=source, **settings))
    assert opened.description["format"] == "jsonl"
    found: list[tuple[str, Any, Any]] = []
    for record in opened.records(split):
        if isinstance(record, BadRecord):
            found.append((record.source_id, record.rejected.reason, record.rejected.detail))
            continue
        assert isinstance(record.image, ImageFile)
        found.append((record.source_id, record.image.name, record.captions))
    return found


@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [("coco_karpathy_train.json", "", 200), ("redcaps.json", "images", 40)],
    ids=["blip", "redcaps"],
)
def test_the_cases_that_people_sent(shared_data: Path, name: str, images: str, captions: int) -> None:
    if not CASES.is_dir():
        pytest.skip("needs the inputs in ../shared/cases, which are not part of the project")
    source = open_source(Data(source=str(CASES / name), images=str(shared_data / "coco-mini" / images)))
    records = [record for record in source.records("train") if isinstance(record, Record)]
    assert len(records) == 40
    assert sum(len(record.captions) for record in records) == captions
    assert all(record.image.read().startswith(b"\xff\xd8") for record in records)


LIST = [
    {"image": "val/a.jpg", "caption": ["one", "two"], "image_id": "coco_1"},
    {"image": "val/b.jpg", "caption": "three", "image_id": "coco_2"},
]
READ = [("coco_1", "val/a.jpg", ("one", "two")), ("coco_2", "val/b.jpg", ("three",))]


@pytest.mark.parametrize("indent", [None, 0, 2], ids=["one-line", "broken", "indented"])
@pytest.mark.parametrize(
    "content",
    [
        LIST,
        {"data": LIST},
        {"annotations": LIST},
        {"info": {"images": [1]}, "licenses": [{"id": 1, "url": "x"}], "records": LIST, "more": [1, [2]]},
        {"images": [{"id": 7}], "annotations": [{**row, "id": 3} for row in LIST]},
        {"images": [{"image_id": r["image_id"], "file_name": r["image"], "caption": r["caption"]} for r in LIST]},
    ],
    ids=["list", "data", "annotations", "beside-others", "images-beside", "captions-in-images"],
)
def test_a_list_of_records_is_a_table(tmp_path: Path, content: Any, indent: int | None) -> None:
    if isinstance(content, dict) and "id" in content.get("images", [{}])[0]:
        content["annotations"] = [{k: v for k, v in row.items() if k != "image_id"} for row in content["annotations"]]
        expected = [("3", *READ[0][1:]), ("3", *READ[1][1:])]
    else:
        expected = READ
    assert rows(written(tmp_path / "list.json", content, indent=indent)) == expected


def test_lists_in_splits_compressed_and_in_other_encodings(tmp_path: Path) -> None:
    text = json.dumps([{"file": "ä.jpg", "words": "größer"}, {"file": "b.jpg", "words": "x"}], ensure_ascii=False)
    (tmp_path / "val.json.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    (tmp_path / "train.json").write_bytes(text.encode("utf-16"))
    (tmp_path / "old.json").write_bytes(text.encode("cp1252"))
    columns = Columns(image="file", caption="words")
    both = {"train": str(tmp_path / "train.json"), "val": str(tmp_path / "val.json.gz")}
    for source, split, encoding in (
        (both, "train", None),
        (both, "val", None),
        (str(tmp_path / "*.json*"), "val", None),
        (str(tmp_path / "old.json"), "train", "cp1252"),
    ):
        found = rows(source, split, columns=columns, encoding=encoding)
        assert found == [("0", "ä.jpg", ("größer",)), ("1", "b.jpg", ("x",))]
    with_split = written(
        tmp_path / "s.json", [{**row, "split": name} for row, name in zip(LIST, ("dev", "x"), strict=True)]
    )
    assert rows(with_split, "val") == READ[:1]


def test_a_bad_record_is_lost_alone_and_named_by_its_place(tmp_path: Path) -> None:
    bad = [5, None, {"image": "c.jpg", "caption": ["fine", None]}, {"image": 7, "caption": "x"}, {"image": "NUMBER"}]
    text = json.dumps([*LIST, *bad]).replace('"NUMBER"', "8" * 9_999)
    found = rows(written(tmp_path / "list.json", text), columns=Columns(id="image"))
    assert [row[:2] for row in found[2:4]] == [("2", "malformed-record"), ("3", "malformed-record")]
    assert found[2][2] == "record 2: it is no JSON object"
    fine, null = found[4][2]
    assert fine == "fine"
    assert isinstance(null, Rejected)
    assert null.detail.startswith("record 4")
    assert [row[1] for row in found[5:]] == ["malformed-record"] * 2


def test_redcaps_images_lie_by_subreddit_or_flat(tmp_path: Path) -> None:
    annotations = [
        {"image_id": "b1", "subreddit": "itap", "caption": "one", "raw_caption": "One", "url": "u"},
        {"image_id": "b2", "subreddit": "../x", "caption": "two", "raw_caption": "Two", "url": "u"},
    ]
    first = written(tmp_path / "itap_2017.json", {"info": {}, "annotations": annotations})
    written(tmp_path / "pics_2017.json", {"info": {}, "annotations": [{**annotations[0], "subreddit": "pics"}]})
    (tmp_path / "images" / "itap").mkdir(parents=True)
    images = str(tmp_path / "images")
    assert rows(first, images=images) == [("b1", "itap/b1.jpg", ("one",)), ("b2", "b2.jpg", ("two",))]
    assert [row[1] for row in rows(str(tmp_path / "*_2017.json"), images=images)] == ["itap/b1.jpg", "b2.jpg", "b1.jpg"]
    assert rows(first, columns=Columns(caption="raw_caption"))[0] == ("b1", "b1.jpg", ("One",))


def test_an_image_id_may_be_the_file_s_name(tmp_path: Path) -> None:
    content = [{"image_id": "x/a.png", "caption": "one"}, {"image_id": "b.jpg", "caption": "two"}]
    expected = [("x/a.png", "x/a.png", ("one",)), ("b.jpg", "b.jpg", ("two",))]
    assert rows(written(tmp_path / "list.json", content)) == expected
    assert rows(written(tmp_path / "object.json", {"annotations": content})) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no JSON object in its first items"),
        ("[1, [2], null]", "no JSON object in its first items"),
        ('[{"image_id": 5, "caption": "x"}]', "has the columns 'image_id', 'caption'; expected one for the image"),
        ('{"data": [{"pic": "a.jpg", "words": "x"}]}', "has the columns 'pic', 'words'; .*data.columns.image"),
        ('[{"image": "a", "caption": "x"}, {"image": "b", ', r"is not JSON, record 1: .*Is the file whole\?"),
        ('[{"image": "a", "caption": "x"} {"image": "b"}]', "is not JSON, record 0: expected ',', found '{'"),
        ('[{"image": "a", "caption": "x"}]]', "something follows its end"),
        ('[{"image": "a", "caption": "x"},', "is not JSON, record 1: "),
        ('{"data": [{"image": "a", "caption": "x"}, oops]}', r"is not JSON, data\[1\]: .*'oops"),
        ("[" * 100_000, "is not JSON, record 0: it is nested too deeply"),
    ],
    ids=["empty", "others", "coco-results", "names", "cut", "comma", "more", "ends-in-comma", "word", "deep"],
)
def test_a_wrong_list_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "list.json", text)
    with pytest.raises(SourceError, match=message):
        list(open_source(Data(source={"train": path})).records("train"))


def anything(numbers: random.Random, depth: int = 0) -> Any:
    kind = numbers.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [anything(numbers, depth + 1) for _ in range(numbers.randrange(4))]
    if kind == 7:
        return {f'k{n}\u00e4"': anything(numbers, depth + 1) for n in range(numbers.randrange(4))}
    text = "".join(numbers.choice('ab"\\/\n\t{}[],: ä😀\u2028') for _ in range(numbers.randrange(40)))
    return (None, numbers.random() < 0.5, numbers.randrange(-(10**20), 10**20), numbers.gauss(0, 1e99), text, "")[kind]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18], ids=["one", "seven", "usual"])
def test_pieces_are_what_json_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_documents, "_CHUNK", chunk)
    numbers = random.Random(3)
    for number in range(120):
        value = anything(numbers, 2)
        value = value if isinstance(value, dict) else [value, anything(numbers)]
        text = json.dumps(value, ensure_ascii=bool(number % 2), indent=number % 3 or None)
        (file,) = find(written(tmp_path / "v.json", text))
        read: dict[str | None, Any] = {
            key: [] for key in (value if isinstance(value, dict) else ()) if value[key] == []
        }
        for key, place, item in pieces(file):  # type: ignore[arg-type]
            if place is None:
                read[key] = item
            else:
                assert place == len(read.setdefault(key, []))
                read[key].append(item)
        assert read == (value if isinstance(value, dict) else {None: value})
        cut = text[: numbers.randrange(1, len(text))].rstrip()
        (file,) = find(written(tmp_path / "v.json", cut))
        with pytest.raises(SourceError, match="is not JSON"):
            list(pieces(file))  # type: ignore[arg-type]
