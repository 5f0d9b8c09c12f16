"""Tables as people have them: lists in cells, any delimiter and encoding, no line of names, odd types in Parquet."""

from __future__ import annotations

import codecs
import datetime
import decimal
import json
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from merged_sources import merged_source
from refusals import refused
from written_tables import opened, read

from pipeline.sources import BadRecord, Record, Rejected, open_source
from stores import ParameterError, SourceError
from stores.parameter_loading import load_parameters
from stores.parameters import Columns, Data, ExtractParameters

CASES = SHARED.parent / "cases"


def test_delimiters_are_seen_or_set(tmp_path: Path) -> None:
    plain = [("a.png", ["one, two"]), ("b.png", ['three; "four"'])]
    for file, text in {
        "semicolons": '\ufeffimage;caption\na.png;one, two\nb.png;"three; ""four"""\n',
        "bars": 'image_name| comment_number| comment\na.png| 0| one, two\nb.png| 1| three; "four"\n',
        "tabs": 'caption\timage\none, two\ta.png\nthree; "four"\tb.png\n',
        "commas": 'image,caption\na.png,"one, two"\nb.png,"three; ""four"""\n',
        "more columns": 'x;image;y;caption\n1,2;a.png;;one, two\n;b.png;;"three; ""four"""\n',
    }.items():
        assert read(opened(tmp_path / file, text)) == plain, file
    carets = 'image^caption\na.png^one, two\nb.png^three; "four"\n'
    assert read(opened(tmp_path / "carets", carets, delimiter="^")) == plain
    doubled = "image||caption\na.png||one | two\n"
    assert read(opened(tmp_path / "doubled", doubled, delimiter="||")) == [("a.png", ["one | two"])]
    quoted = 'image|caption\na.png|"one | two"\n'
    assert read(opened(tmp_path / "quoted", quoted, format="csv")) == [("a.png", ["one | two"])]
    with refused(SourceError, where="data.delimiter", found="||", advice="Set data.format=tsv for longer ones."):
        read(opened(tmp_path / "doubled", doubled, delimiter="||", format="csv"))


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    plain = [("a.png", ["one"]), ("b.png", ["two"])]
    for name, text in {
        "empty rows": "image;caption\n;\na.png;one\n;\nb.png;two\n;\n",
        "told": "sep=;\nimage;caption\na.png;one\nb.png;two\n",
        "told, with tabs": '"sep=\t"\nimage\tcaption\na.png\tone\nb.png\ttwo\n',
        "an old Macintosh": "image,caption\ra.png,one\rb.png,two\r",
        "an old Macintosh, with tabs": "image\tcaption\ra.png\tone\rb.png\ttwo\r",
        "blanks behind commas": 'image, caption\na.png, "one"\nb.png, two\n',
    }.items():
        assert read(opened(tmp_path / "t.txt", text)) == plain, name


def test_a_quoted_line_break_between_tabs_is_told(tmp_path: Path) -> None:
    text = 'image\tcaption\na.png\t"one\ntwo"\nb.png\t5" tall\nc.png\t"a" and "b"\n'
    (cut, _), (rest, _), *others = read(opened(tmp_path / "t.tsv", text))
    assert "a quoted field goes on over the line's end: set data.format=csv" in cut
    assert rest.startswith("line 3: it has 1 fields")
    assert others == [("b.png", ['5" tall']), ("c.png", ['"a" and "b"'])]
    quoted = 'image\tcaption\na.png\t"one\ntwo"\n'
    assert read(opened(tmp_path / "t.tsv", quoted, format="csv"))[0] == ("a.png", ["one\ntwo"])


def test_a_null_caption_leaves_a_trace(tmp_path: Path) -> None:
    columns = {"image": ["a.png", "a.png", "b.png"], "caption": ["x", None, None]}
    source = open_source(Data(source=str(parquet(tmp_path / "t.parquet", columns))))
    with merged_source(source, tmp_path) as once:
        assert [captions for _, captions in read(once)] == [["x", "(empty-caption)"], ["(empty-caption)"]]
    rows = [{"image": "a.png", "caption": "x"}, {"image": "a.png"}, {"image": "a.png", "caption": []}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(opened(tmp_path / "t.jsonl", text))[1:] == [("a.png", ["(empty-caption)"])] * 2


def test_a_column_that_tells_no_splits_stops_the_run(tmp_path: Path) -> None:
    text = "".join(json.dumps({"image": "a.png", "caption": "x", "split": number}) + "\n" for number in (0, 1))
    with refused(SourceError, where="column 'split'", found="a whole number"):
        opened(tmp_path / "t.jsonl", text)
    some = text + json.dumps({"image": "a.png", "caption": "x", "split": "test"}) + "\n"
    source = opened(tmp_path / "t.jsonl", some)
    assert source.splits == ("test",)
    lost = [record.captions for record in source.records("test") if isinstance(record, BadRecord)]
    assert lost == [1, 1], "captions of rows without a split count as lost"


ENCODED = {
    "utf-8 with a mark": (codecs.BOM_UTF8 + "image,caption\na.png,é\n".encode(), None),
    "utf-8 with a mark, set": (codecs.BOM_UTF8 + "image,caption\na.png,é\n".encode(), "utf-8"),
    "utf-16 with a mark, set": ("image,caption\na.png,é\n".encode("utf-16"), "utf-16-le"),
    "utf-16 little": (codecs.BOM_UTF16_LE + "image,caption\na.png,é\n".encode("utf-16-le"), None),
    "utf-16 big": (codecs.BOM_UTF16_BE + "image\tcaption\r\na.png\té\r\n".encode("utf-16-be"), None),
    "utf-16 without a mark": ("image,caption\na.png,é\n".encode("utf-16-le"), None),
    "utf-32": ("image,caption\na.png,é\n".encode("utf-32"), None),
    "jsonl in utf-16": ('{"image": "a.png", "caption": "é"}\n{"image": "b.png"}\n'.encode("utf-16"), None),
    "cp1252": ("image;caption\na.png;é\n".encode("cp1252"), "cp1252"),
    "shift-jis": ("image,caption\na.png,猫\n".encode("shift-jis"), "shift-jis"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_encodings_are_seen_or_set(name: str, tmp_path: Path) -> None:
    data, encoding = ENCODED[name]
    expected = "猫" if encoding == "shift-jis" else "é"
    assert read(opened(tmp_path / "t.bin", data, encoding=encoding))[0] == ("a.png", [expected])


def test_an_encoding_that_is_none_is_told() -> None:
    with refused(ParameterError, where="data.encoding", found="latin-99"):
        load_parameters(ExtractParameters, None, overrides=("data.encoding=latin-99",))
    expected = "a valid string, or greater than 0, or a list"
    with refused(ParameterError, where="data.columns.image", found=0, expected=expected):
        load_parameters(ExtractParameters, None, overrides=("data.columns.image=0",))
    given = load_parameters(ExtractParameters, None, overrides=("data.columns={image: [1, name], caption: 2}",))
    assert (given.data.columns.image, given.data.columns.caption) == ([1, "name"], 2)


WITHOUT_NAMES = {
    "caption and path": ("a dog, on a sofa\timages/a.png\na cat\tb.png\n", 2, 1),
    "path and caption": ("a.png,a dog on a red sofa\nb.png,a cat\n", 1, 2),
    "address and caption": ("a dog\thttps://example.org/1\nb\thttps://example.org/2\n", 2, 1),
    "a number between": ("a.png;7;a dog that runs fast\nb.png;8;a cat\n", 1, 3),
    "a comma in each": ("a.png;a dog, big and red\nb.png;a cat, small\n", 1, 2),
}


@pytest.mark.parametrize("name", WITHOUT_NAMES)
def test_without_a_line_of_names_the_advice_keeps_the_first_row(name: str, tmp_path: Path) -> None:
    text, image, caption = WITHOUT_NAMES[name]
    advice = f"-S data.columns.image={image} -S data.columns.caption={caption}"
    with pytest.raises(SourceError, match="the first line looks like data") as caught:
        read(opened(tmp_path / "t", text))
    assert caught.value.message.endswith(f"{advice}.")
    assert len(read(opened(tmp_path / "t", text, {"image": image, "caption": caption}))) == 2
    first = text.splitlines()[0].replace(";", "\t").split("\t" if "\t" in text or ";" in text else ",")[image - 1]
    with pytest.raises(SourceError, match="the first line looks like data"):
        read(opened(tmp_path / "t", text, {"image": first}))


def test_numbers_of_columns_of_a_table_with_names(tmp_path: Path) -> None:
    for head in ("image,caption", "Image Path,Text", "photo,what"):
        source = opened(tmp_path / "t.csv", f"{head}\na.png,one\nb.png,two\n", {"image": 1, "caption": 2})
        assert read(source) == [("a.png", ["one"]), ("b.png", ["two"])]
    twice = opened(tmp_path / "t.csv", "image,caption,caption\na.png,one,eins\n", {"caption": 3})
    assert read(twice) == [("a.png", ["eins"])]
    with pytest.raises(SourceError, match=r"has the columns 'image', 'caption'; expected 3, which data.columns.id"):
        read(opened(tmp_path / "t.csv", "image,caption\na.png,one\n", {"id": 3}))


def test_the_files_of_flickr30k_are_read_as_they_are(tmp_path: Path) -> None:
    text = 'image_name| comment_number| comment\na.jpg| 0| Two "men" , one | a hat .\na.jpg| 1| Fine .\n'
    *_, (image, captions) = read(opened(tmp_path / "results.csv", text))
    assert (image, captions) == ("a.jpg", ["Fine ."])
    text = "a.jpg#0\tTwo men , one hat .\r\na.jpg#1\tFine .\r\nb#1.jpg#0\tAnother .\r\n"
    found = [("a.jpg", ["Two men , one hat ."]), ("a.jpg", ["Fine ."]), ("b#1.jpg", ["Another ."])]
    assert read(opened(tmp_path / "x.token", text)) == read(opened(tmp_path / "x.txt", text)) == found


def test_folder_and_file_name_in_two_columns(tmp_path: Path) -> None:
    (tmp_path / "train2014").mkdir()
    text = "filepath,filename,sentences\ntrain2014,a.jpg,\"['x']\"\nval2014,b.jpg,y\n,c.jpg,z\n"
    assert [name for name, _ in read(opened(tmp_path / "t.csv", text))] == ["train2014/a.jpg", "b.jpg", "c.jpg"]
    text = "dir\tname\tcaption\ntrain2014\ta.jpg\tx\n"
    pair = {"image": ["dir", "name"]}
    assert read(opened(tmp_path / "t.tsv", text, pair)) == [("train2014/a.jpg", ["x"])]
    whole = "filepath,filename,caption\ntrain2014/a.jpg,a.jpg,x\n"
    assert read(opened(tmp_path / "t.csv", whole)) == [("train2014/a.jpg", ["x"])], "filepath is a whole path here"


HUGE = [str(10**37 + n) for n in range(3)]


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_odd_types_in_parquet(tmp_path: Path) -> None:
    sentences = [[{"raw": "a", "tokens": ["a"]}, {"raw": "b", "tokens": []}], [{"raw": None, "tokens": []}], None]
    names = pa.array(["a.png", "b.png", "c.png"])
    ids = {
        "huge": (pa.array([decimal.Decimal(10**37 + n) for n in range(3)], pa.decimal128(38, 0)), HUGE),
        "decimal": (pa.array([decimal.Decimal(n) for n in (7, 8, 9)], pa.decimal128(20, 0)), ["7", "8", "9"]),
        "binary": (pa.array([b"x", "é".encode(), b"\xff\x00"]), ["x", "é", "ff00"]),
        "fixed": (pa.array([uuid.UUID(int=1).bytes] * 3, pa.binary(16)), [f"{1:032x}"] * 3),
        "view": (pa.array(["x", "y", "z"], pa.string_view()), ["x", "y", "z"]),
        "gaps": (pa.array([1.0, 2.0, 3.0]), ["1", "2", "3"]),
    }
    for kind, (values, expected) in ids.items():
        table = {"image": names.cast(pa.string_view()), "id": values, "sentences": sentences}
        source = open_source(Data(source=str(parquet(tmp_path / f"{kind}.parquet", table))))
        records = list(source.records("train"))
        assert [record.source_id for record in records] == expected, kind
        assert [captions for _, captions in read(source)] == [["a", "b"], ["(empty-caption)"], ["(empty-caption)"]]


def test_what_lies_within_a_column_is_named_with_a_dot(tmp_path: Path) -> None:
    rows = [{"meta": {"file": "a.png"}, "sentences": [{"said": "x"}, {"said": "y"}, {}]}]
    parquet(tmp_path / "t.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    columns = Columns(image="meta.file", caption="sentences.said")
    for file in ("t.parquet", "t.jsonl"):
        source = open_source(Data(source=str(tmp_path / file), columns=columns))
        assert read(source)[0] == ("a.png", ["x", "y", "(empty-caption)"])


def test_binary_views_of_pictures_stay_in_the_file(tmp_path: Path) -> None:
    table = {"image": pa.array([b"one", None, b"three"], pa.binary_view()), "caption": pa.array([b"x", b"\xff", b"z"])}
    source = open_source(Data(source=str(parquet(tmp_path / "t.parquet", table))))
    records = [record for record in source.records("train") if isinstance(record, Record)]
    assert [record.captions for record in records] == [("x",), ("\udcff",), ("z",)]
    assert [records[number].image.read() for number in (0, 2)] == [b"one", b"three"]
    with pytest.raises(Rejected, match="holds no image"):
        records[1].image.read()


def test_a_value_that_is_no_text_is_told_with_its_column_and_kind(tmp_path: Path) -> None:
    columns = {
        "image": [3.5, None],
        "caption": [datetime.date(2020, 1, 1)] * 2,
        "id": [datetime.datetime(2020, 1, 1)] * 2,
    }
    source = open_source(Data(source=str(parquet(tmp_path / "t.parquet", columns))))
    details = [record.rejected.detail for record in source.records("train") if isinstance(record, BadRecord)]
    assert details[0] == "row 0: its column 'id' holds a value of the type datetime, expected text or a whole number"
    columns["id"] = [1, 2]
    source = open_source(Data(source=str(parquet(tmp_path / "t.parquet", columns))))
    details = [record.rejected.detail for record in source.records("train") if isinstance(record, BadRecord)]
    assert details[0] == "row 0: its column 'image' holds a number, expected a path, or the bytes of an image"
    columns["image"] = ["a.png", "b.png"]
    source = open_source(Data(source=str(parquet(tmp_path / "t.parquet", columns))))
    (caption,) = next(iter(source.records("train"))).captions  # type: ignore[union-attr, misc]
    assert caption.detail == "row 0, column 'caption': a caption is a value of the type date, expected text"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_picture_nearby_is_told(tmp_path: Path, form: str) -> None:
    (tmp_path / "Images").mkdir()
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for name in ("a.png", "Images/b.png", unicodedata.normalize(form, "é.png"), "Images/E.PNG"):
        (tmp_path / name).write_bytes(b"")
    odd = [r"Images\b.png", "b.png", unicodedata.normalize(other, "é.png"), "gone.png", "A.PNG", "pictures/a.png"]
    odd += [f"{tmp_path.name}/a.png", "a", " a.png "]
    text = "".join(json.dumps({"image": name, "caption": "x"}) + "\n" for name in odd)
    told = []
    for record in opened(tmp_path / "t.jsonl", text).records("train"):
        with pytest.raises(Rejected) as caught:
            record.image.read()  # type: ignore[union-attr]
        told.append(caught.value.detail.partition(" does not exist")[2])
    assert [bool(advice) for advice in told] == [True, True, True, False, True, True, True, True, True]
    assert told[0] == r"; it is there with / in place of \: write the names so"
    assert told[1].endswith(f"it is in Images/: set data.images (--images) to {tmp_path}/Images")
    assert f"in Unicode's form {form}" in told[2]
    assert "a.png is there: upper and lower case differ" in told[4]
    assert told[5] == "; a.png is there, without pictures/: leave that out of the names"
    assert told[6] == "; a.png is in the folder itself: set data.images (--images) to the folder above"
    assert told[7] == "; a.png is there: write the names with their ending"
    assert told[8] == "; it is there without the blanks around its name: write it so"


SENT = {
    "list_single.csv": (20, 100, 0),
    "results.csv": (40, 199, 1),
    "results_20130124.token": (40, 200, 0),
    "semicolon.csv": (20, 40, 0),
    "local.tsv": (40, 40, 0),
}


@pytest.mark.parametrize("name", SENT)
def test_the_cases_that_people_sent(shared_data: Path, tmp_path: Path, name: str) -> None:
    headless = name == "local.tsv"
    images = shared_data / "coco-mini" if headless else shared_data / "coco-mini" / "images"
    columns = Columns(image=2, caption=1) if headless else Columns()
    source = open_source(Data(source=str(CASES / name), images=str(images), columns=columns))
    with merged_source(source, tmp_path) as once:
        records = list(once.records("train"))
    good = [record for record in records if isinstance(record, Record)]
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert (len(good), sum(len(record.captions) for record in good), len(bad)) == SENT[name]
    assert all(isinstance(caption, str) for record in good for caption in record.captions)
    assert all(record.image.read() for record in good)
