"""Every format of data set, on a local folder and on fsspec's `memory://`: records, splits, hostile files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
import socket
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from merged_sources import merged_source
from PIL import Image
from refusals import refused

from pipeline.sources import BadRecord, Record, Rejected, Source, open_source
from stores import SourceError
from stores.parameters import Columns, Data

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(stream, "PNG")
    return stream.getvalue()


class Place:
    """A folder on one file system, to write data sets to."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.system, self.path = fsspec.url_to_fs(root)

    def url(self, name: str = "") -> str:
        return f"{self.root}/{name}".rstrip("/")

    def write(self, name: str, data: bytes | str) -> str:
        path = f"{self.path}/{name}"
        self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.system.pipe_file(path, data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
        return self.url(name)

    def pictures(self, *names: str) -> None:
        for number, name in enumerate(names):
            self.write(name, png(number))


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield Place(str(tmp_path / "data") if request.param == "local" else "memory://data")
    MemoryFileSystem.store.clear()


def opened(source: Any, **settings: Any) -> Source:
    if "columns" in settings:
        settings["columns"] = Columns(**settings["columns"])
    return open_source(Data(source=source, **settings))


def listed(source: Source, split: str = "train") -> list[tuple[str, tuple[str, ...], bytes | str]]:
    """Read a split through: each record's id, captions and image (of a pickled copy), or the reason it is bad."""
    found: list[tuple[str, tuple[str, ...], bytes | str]] = []
    for record in source.records(split):
        copy = pickle.loads(pickle.dumps(record))
        if isinstance(copy, BadRecord):
            assert isinstance(record, BadRecord)
            assert str(copy.rejected) == str(record.rejected)
            found.append((copy.source_id, (), copy.rejected.reason))
            continue
        try:
            data: bytes | str = copy.image.read()
            assert isinstance(record, Record)
            assert record.image.read() == data
            assert record.image.identity() == copy.image.identity()
        except Rejected as rejected:
            data = rejected.reason
        found.append((copy.source_id, copy.captions, data))
    return found


def details(source: Source, split: str = "train") -> list[str]:
    return [r.rejected.detail for r in source.records(split) if isinstance(r, BadRecord)]


def csv_text(rows: list[list[str]], delimiter: str = ",") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


def tar_bytes(members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind, errors="surrogateescape") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def img2dataset_tar(shard: int, count: int, first: int = 0) -> bytes:
    members = []
    for number in range(count):
        key = f"{shard:05d}{number:04d}"
        facts = {"key": key, "caption": f"picture {first + number}", "status": "success"}
        members.append((f"{key}.jpg", png(first + number)))
        members.append((f"{key}.json", json.dumps(facts).encode()))
        members.append((f"{key}.txt", facts["caption"].encode()))
    return tar_bytes(members)


def parquet_bytes(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def embedded(numbers: Any, path: str | None = None) -> pa.Array:
    return pa.array([{"bytes": png(number), "path": path} for number in numbers], type=IMAGE_STRUCT)


def arrow_stream(batches: list[dict[str, pa.Array]]) -> bytes:
    stream = io.BytesIO()
    tables = [pa.table(batch) for batch in batches]
    with pa.ipc.new_stream(stream, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return stream.getvalue()


# One data set, two samples, in every format ---------------------------------------------------------------------


def as_csv(place: Place) -> str:
    place.pictures("a.png", "b.png")
    return place.write("t.csv", "filename,caption\r\na.png,first\r\na.png,second\r\nb.png,third\r\n")


def as_tsv(place: Place) -> str:
    place.pictures("a.png", "b.png")
    return place.write("t.tsv", "image\tsentence\na.png\tfirst\na.png\tsecond\nb.png\tthird\n")


def as_jsonl(place: Place) -> str:
    place.pictures("a.png", "b.png")
    rows = [{"image": "a.png", "text": ["first", "second"]}, {"image": "b.png", "text": "third"}]
    return place.write("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(place: Place) -> str:
    place.pictures("a.png", "b.png")
    columns = {"Image Path": ["a.png", "a.png", "b.png"], "TEXT": ["first", "second", "third"]}
    return place.write("t.parquet", parquet_bytes(columns))


def as_embedded_parquet(place: Place) -> str:
    columns = {"image": embedded([0, 0, 1]), "text": ["first", "second", "third"]}
    return place.write("hub/data/train-00000-of-00001.parquet", parquet_bytes(columns)).rpartition("/data/")[0]


def as_saved_data_set(place: Place) -> str:
    batches = [
        {"image": embedded([0]), "text": pa.array([["first", "second"]])},
        {"image": embedded([1]), "text": pa.array([["third"]])},
    ]
    place.write("saved/data-00000-of-00001.arrow", arrow_stream(batches))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    place.write("saved/state.json", json.dumps(state))
    place.write("saved/dataset_info.json", "{}")
    return place.url("saved")


def as_folder(place: Place) -> str:
    place.pictures("pictures/a.png", "pictures/b.png")
    place.write("pictures/a.txt", "first\r\nsecond\n")
    place.write("pictures/b.txt", "third")
    return place.url("pictures")


def as_tar(place: Place) -> str:
    members = [
        ("a.png", png(0)),
        ("a.json", json.dumps({"caption": ["first", "second"]}).encode()),
        ("b.png", png(1)),
        ("b.txt", b"third"),
    ]
    return place.write("t.tar", tar_bytes(members))


def as_karpathy(place: Place) -> str:
    place.pictures("a.png", "b.png")
    entries = [
        {"filename": "a.png", "split": "train", "sentences": [{"raw": "first"}, {"raw": "second"}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": "third"}]},
    ]
    return place.write("dataset.json", json.dumps({"images": entries}))


FORMATS: dict[str, Callable[[Place], str]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "parquet-embedded": as_embedded_parquet,
    "huggingface": as_saved_data_set,
    "folder": as_folder,
    "webdataset": as_tar,
    "karpathy": as_karpathy,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_samples(place: Place, kind: str, tmp_path: Path) -> None:
    url = FORMATS[kind](place)
    source = opened(url)
    with merged_source(source, tmp_path) as once:
        same = [sample[1:] for sample in listed(once)]
        assert same == [(("first", "second"), png(0)), (("third",), png(1))], "rows of one picture are one sample"
    assert source.splits == ("train",)
    assert source.description["format"] == kind.partition("-")[0]
    found = listed(source)
    assert [caption for sample in found for caption in sample[1]] == ["first", "second", "third"]
    assert listed(source) == found, "each pass begins anew"
    both = list(zip(source.records("train"), source.records("train"), strict=True))
    assert len(both) == len(found)
    assert all(one == other for one, other in both), "two passes at once do not disturb each other"
    assert opened(url).description == source.description
    assert json.loads(json.dumps(source.description)) == source.description
    assert opened(url, format=kind.partition("-")[0]).description == source.description
    if kind != "karpathy":
        assert listed(opened({"dev": url}), "dev")[-1][1] == ("third",), "named splits are called as they are named"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "folder"])
def test_a_file_that_changes_under_the_run_is_told(place: Place, kind: str) -> None:
    url = FORMATS[kind](place)
    source = opened(url)
    passing = source.records("train")
    next(passing)
    names = [name for name in place.system.find(place.path) if not name.endswith((".png", "info.json", "state.json"))]
    assert len(names) == 1
    place.system.pipe_file(names[0], place.system.cat_file(names[0]) + b"\n")
    with refused(SourceError, problem="changed while it was read"):
        list(passing)
    with pytest.raises(SourceError, match="changed while it was read"):
        next(source.records("train"))
    place.system.rm_file(names[0])
    with refused(SourceError, problem="changed while it was read", found="no such file or folder"):
        next(source.records("train"))


def test_a_file_cut_under_the_run_is_told_as_changed_and_not_as_damaged(place: Place) -> None:
    url = place.write("t.csv", 'image,caption\n"a.png","first"\n' + '"a.png","more\nlines"\n' * 200_000)
    passing = opened(url).records("train")
    place.write("t.csv", 'image,caption\n"a.png","first\n')
    with pytest.raises(SourceError, match="changed while it was read"):
        list(passing)


@pytest.mark.parametrize("kind", ["webdataset", "parquet-embedded", "huggingface"])
def test_an_image_within_a_local_file_that_changed_is_rejected(tmp_path: Path, kind: str) -> None:
    place = Place(str(tmp_path))
    record = next(opened(FORMATS[kind](place)).records("train"))
    assert isinstance(record, Record)
    (name,) = [name for name in place.system.find(place.path) if not name.endswith(".json")]
    Path(name).write_bytes(Path(name).read_bytes() + b"\0" * 512)
    with pytest.raises(Rejected, match="changed-file"):
        record.image.read()
    Path(name).unlink()
    with pytest.raises(Rejected, match="missing-file"):
        record.image.read()


def test_an_image_that_changed_since_its_folder_was_listed_is_rejected() -> None:
    place = Place("memory://listed")
    records = list(opened(as_folder(place)).records("train"))
    place.write("pictures/a.png", png(0) + b"more")
    assert isinstance(records[0], Record)
    with pytest.raises(Rejected, match="changed-file"):
        records[0].image.read()


# Splits ---------------------------------------------------------------------------------------------------------


def test_splits_by_the_names_of_files(place: Place) -> None:
    for number, name in enumerate(
        ["train-00000.parquet", "train-00001.parquet", "validation-0.parquet", "test.parquet"]
    ):
        place.write(f"hub/data/{name}", parquet_bytes({"image": embedded([number]), "text": [name]}))
    place.write("hub/README.md", "hello")
    source = opened(place.url("hub"))
    assert source.splits == ("train", "val", "test")
    assert [sample[0] for sample in listed(source)] == ["train-00000/0", "train-00001/0"]
    assert listed(source, "val") == [("0", ("validation-0.parquet",), png(2))]
    assert source.id_scope("val") != source.id_scope("test"), "both have a row 0"
    assert source.description["files"]["train"]["count"] == 2
    assert opened(place.url("hub/data/*.parquet")).splits == ("train", "val", "test")
    assert opened(place.url("hub/data/t*-0000{0,1}.parquet")).splits == ("train",)
    one = opened({"dev": place.url("hub/data/train-0000{0..1}.parquet")})
    assert [sample[2] for sample in listed(one, "dev")] == [png(0), png(1)]
    assert opened(place.url("hub/data/test.parquet")).splits == ("train",), "one file is all of the data set"


def test_a_split_may_stand_within_the_name_of_a_file(place: Place) -> None:
    names = {
        "coco_karpathy_val.csv": "val",
        "captions_train2014.csv": "train",
        "latest.csv": "train",
        "x-test.csv": "test",
    }
    for name in names:
        place.write(name, "image,caption\na.png,one\n")
    source = opened(place.url("*.csv"))
    assert source.splits == ("train", "val", "test")
    assert [len(listed(source, split)) for split in source.splits] == [2, 1, 1]


def test_splits_by_sub_folders_of_tars(place: Place) -> None:
    place.write("wds/train/00000.tar", img2dataset_tar(0, 2))
    place.write("wds/train/00001.tar", img2dataset_tar(1, 1, first=2))
    place.write("wds/train/00000.parquet", parquet_bytes({"key": ["x"]}))
    place.write("wds/train/00000_stats.json", "{}")
    place.write("wds/Val/00000.tar", img2dataset_tar(0, 1, first=3))
    source = opened(place.url("wds"))
    assert source.splits == ("train", "val")
    assert listed(source) == [
        ("000000000", ("picture 0",), png(0)),
        ("000000001", ("picture 1",), png(1)),
        ("000010000", ("picture 2",), png(2)),
    ]
    assert listed(source, "val")[0][1] == ("picture 3",)
    assert len(listed(opened(place.url("wds/train/0000{0..1}.tar")))) == 3


def test_splits_of_a_folder_are_its_sub_folders(place: Place) -> None:
    names = ["train/x/a.png", "train/b.png", "dev/a.png", "test/a.png", "test/.hidden.png"]
    place.pictures(*names)
    for name in names:
        place.write(name.replace("png", "txt"), f"in {name}")
    source = opened(place.url())
    assert source.splits == ("train", "val", "test")
    assert [(sample[0], sample[1]) for sample in listed(source)] == [
        ("train/b.png", ("in train/b.png",)),
        ("train/x/a.png", ("in train/x/a.png",)),
    ]
    assert [sample[0] for sample in listed(source, "test")] == ["test/a.png"]
    place.pictures("root.png", "more/c.png")
    ids = [sample[0] for sample in listed(opened(place.url()))]
    assert ids == ["root.png", "more/c.png", "train/b.png", "train/x/a.png"], "what is in no split is to train on"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_splits_by_a_column(place: Place, form: str) -> None:
    rows = [["a.png", "one", "train", "7"], ["a.png", "two", "Validation", "8"], ["b.png", "three", "train", "9"]]
    names = ["image", "caption", "split", "label"]
    place.pictures("a.png", "b.png")
    if form == "csv":
        url = place.write("t.csv", csv_text([names, *rows, ["c.png", "four", "", ""], ["short"]]))
    elif form == "jsonl":
        dicts = [*(dict(zip(names, row, strict=True)) for row in rows), {"image": "c.png", "caption": "four"}]
        url = place.write("t.jsonl", "\n".join([json.dumps(row) for row in dicts] + ["5"]))
    else:
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        url = place.write("t.parquet", parquet_bytes(columns))
    source = opened(url)
    assert source.splits == ("train", "val")
    train = listed(source)
    assert train[:2] == [("0", ("one",), png(0)), ("2", ("three",), png(1))]
    assert listed(source, "val") == [("1", ("two",), png(0))]
    assert [sample[2] for sample in train[2:]] == ([] if form == "parquet" else ["malformed-record"] * 2)
    assert [r.label for r in source.records("train") if isinstance(r, Record)] == ["7", "9"]
    assert source.id_scope("train") != source.id_scope("val"), "one picture may stand in both"
    assert opened({"all": url}).splits == ("all",)


# Tables ---------------------------------------------------------------------------------------------------------


def test_columns_are_named_or_missed_by_name(place: Place) -> None:
    place.pictures("a.png")
    url = place.write("t.csv", "photo,words,caption\na.png,hello,other\n")
    with pytest.raises(SourceError, match=r"has the columns 'photo', 'words', 'caption'; .*Set data.columns.image"):
        list(opened(url).records("train"))
    with pytest.raises(SourceError, match=r"expected 'picture', which data.columns.image names"):
        list(opened(url, columns={"image": "picture"}).records("train"))
    assert listed(opened(url, columns={"image": "photo", "caption": "words"})) == [("0", ("hello",), png(0))]
    with pytest.raises(SourceError, match=r"'photo'.*data.columns.id"):
        list(opened(url, columns={"image": "photo", "id": "number"}).records("train"))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_rows_of_one_image_are_one_sample_whatever_their_ids(place: Place, form: str, tmp_path: Path) -> None:
    place.pictures("a.png", "b.png")
    names = ["id", "file_name", "caption"]
    rows = [["1", "a.png", "x"], ["1", "a.png", "y"], ["2", "a.png", "z"], ["2", "b.png", "w"], ["1", "a.png", "v"]]
    if form == "csv":
        url = place.write("t.csv", csv_text([names, *rows]))
    elif form == "jsonl":
        url = place.write("t.jsonl", "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        columns = {"id": [float(row[0]) for row in rows], "image": embedded([0, 0, 0, 1, 0])}
        url = place.write("t.parquet", parquet_bytes(columns | {"caption": [row[2] for row in rows]}))
    with merged_source(opened(url), tmp_path) as once:
        assert [sample[:2] for sample in listed(once)] == [("1", ("x", "y", "z", "v")), ("2", ("w",))]
    if form != "parquet":
        assert listed(opened(url, columns={"id": "file_name"}))[0][0] == "a.png"


def test_rows_of_wrong_form_are_told_with_their_line(place: Place) -> None:
    place.pictures("a.png")
    url = place.write(
        "t.csv", 'image,caption\na.png,"two\nlines"\na.png\n\na.png,b,c\n,empty\n../a.png,out\n/a.png,out\n'
    )
    source = opened(url)
    assert [sample[2] for sample in listed(source)] == [png(0), *["malformed-record"] * 3, *["path-outside"] * 2]
    assert details(source) == [
        "line 4: it has 1 fields, the first line has 2",
        "line 6: it has 3 fields, the first line has 2",
        "line 7: its column 'image' holds no text, expected a path, or the bytes of an image",
    ]
    lines = ['{"image": "a.png", "caption": "good"}', "", "{", "[1]", "[" * 100_000, '{"image": 3, "caption": "x"}']
    lines += ['{"image": "a.png", "id": 1, "caption": [1]}', '{"image": "a.png", "id": true, "caption": "x"}']
    source = opened(place.write("t.jsonl", "\n".join([*lines, '{"image": "a.png", "id": 12}'])), columns={"id": "id"})
    *bad, wrong_caption, wrong_id, _ = listed(source)
    assert [sample[2] for sample in bad] == ["malformed-record"] * 5
    assert (wrong_caption[1][0].reason, wrong_id[2]) == ("malformed-caption", "malformed-record")
    number, (none,), data = listed(source)[-1]
    assert (number, none.reason, data) == ("12", "empty-caption", png(0))
    assert details(source)[:2] == [
        "line 1: its column 'id' holds null, expected text or a whole number",
        "line 3: it is no JSON object",
    ]


def test_quotes_in_csv_and_tsv(place: Place) -> None:
    url = place.write("t.csv", 'image,caption\na.png,fine\nb.png,"never closed\nc.png,"x"\nd.png,y\n')
    with refused(SourceError, where=3) as caught:
        list(opened(url).records("train"))
    assert "double quote never closed" in caught.value.advice
    url = place.write("t.csv", 'image,caption\na.png,fine\nb.png,"never closed\nc.png,x\nd.png,y\n')
    with refused(SourceError, where=3, problem="the row that begins here is not CSV (unexpected end of data)"):
        list(opened(url).records("train"))
    text = 'image\tcaption\na.png\t"say ""hi"""\nb.png\ta "quoted" word\nc.png\t"a" and "b"\nd.png\t5" tall\n'
    captions = [sample[1][0] for sample in listed(opened(place.write("t.tsv", text)))]
    assert captions == ['say "hi"', 'a "quoted" word', '"a" and "b"', '5" tall']


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_hostile_captions_come_through(place: Place, form: str) -> None:
    texts = ["nul \0 within", "x" * 1_000_000, "\u202eעברית", "🦊👩‍👩‍👧", 'quote " and , comma', "line\rreturn"]
    names = [f"{number}.png" for number in range(len(texts))]
    if form in ("csv", "tsv"):
        rows = zip(names, texts[:-1] if form == "tsv" else texts, strict=False)
        quoted = csv_text([["image", "caption"], *map(list, rows)], "," if form == "csv" else "\t")
        url = place.write(f"t.{form}", "\ufeff" + quoted)
    elif form == "jsonl":
        rows = zip(names, texts, strict=True)
        url = place.write("t.jsonl", "\n".join(json.dumps({"image": n, "caption": t}) for n, t in rows))
    else:
        url = place.write("t.parquet", parquet_bytes({"image": names, "caption": texts}))
    found = [record.captions[0] for record in opened(url).records("train") if isinstance(record, Record)]
    assert found == texts[: len(found)]
    assert len(found) >= len(texts) - 1
    bad = b"image,caption\na.png,caf\xe9\n" if form == "csv" else b'{"image": "a.png", "caption": "caf\xe9"}\n'
    if form in ("csv", "jsonl"):
        assert listed(opened(place.write(f"bad.{form}", bad)))[0][1] == ("caf\udce9",), "for ingest to quarantine"


def test_compressed_text_and_lists_in_a_field(place: Place) -> None:
    rows = [["raw", "filename", "img_id"], ['["one", "two"]', "a.png", "5"], ['["open', "b.png", "6"]]
    url = place.write("t.csv.gz", gzip.compress(csv_text(rows).encode()))
    place.pictures("a.png", "b.png")
    (first, (number, (cut_short,), _)) = listed(opened(url))
    assert first == ("0", ("one", "two"), png(0))
    assert (number, cut_short.reason) == ("1", "malformed-caption")
    assert opened(place.url()).description["format"] == "csv", "a table beside images is the data set"
    whole = gzip.compress(csv_text([["image", "caption"], *[[f"{n}.png", f"{n * n}"] for n in range(9999)]]).encode())
    with pytest.raises(SourceError, match=r"t.csv.gz cannot be read: .*end-of-stream"):
        list(opened(place.write("t.csv.gz", whole[: len(whole) // 2])).records("train"))


def test_images_may_lie_in_another_place(place: Place, tmp_path: Path) -> None:
    url = place.write("t.csv", "image,caption\nx/a.png,one\n")
    (tmp_path / "elsewhere" / "x").mkdir(parents=True)
    (tmp_path / "elsewhere" / "x" / "a.png").write_bytes(png(5))
    assert listed(opened(url))[0][2] == "missing-file"
    assert listed(opened(url, images=str(tmp_path / "elsewhere")))[0][2] == png(5)
    with pytest.raises(SourceError, match=r"nowhere does not exist. Set data.images"):
        opened(url, images=place.url("nowhere"))


def test_absolute_paths_count_where_they_lie_under_the_image_folder(place: Place) -> None:
    place.pictures("x/a.png", "other/b.png")
    names = [f"{place.path}/x/a.png", f"{place.path}/other/b.png", f"{place.path}/x/../other/b.png", "s3://x/a.png"]
    rows = [[name, str(number)] for number, name in enumerate(names)]
    url = place.write("x/t.csv", csv_text([["image", "caption"], *rows]))
    assert [sample[2] for sample in listed(opened(url))] == [png(0), *["path-outside"] * 3]
    assert listed(opened(url, images=place.url()))[1][2] == png(1)
    with pytest.raises(Rejected, match=r"b.png is absolute and not under .*/x: set data.images \(--images\) to a"):
        list(opened(url).records("train"))[1].image.read()  # type: ignore[union-attr]
    if place.root.startswith("/"):
        assert [sample[2] for sample in listed(opened(url, images="/"))][:2] == [png(0), png(1)]
    else:
        addresses = place.write("t.jsonl", json.dumps({"image": place.url("x/a.png"), "caption": "x"}) + "\n")
        assert listed(opened(addresses))[0][2] == png(0)


def test_images_that_parquet_names_but_does_not_hold_lie_in_the_image_folder(place: Place) -> None:
    place.pictures("pictures/a.png")
    image = pa.array([{"bytes": None, "path": "pictures/a.png"}], type=IMAGE_STRUCT)
    url = place.write("tables/t.parquet", parquet_bytes({"image": image, "caption": ["one"]}))
    assert listed(opened(url))[0][2] == "missing-file"
    assert listed(opened(url, images=place.url()))[0][2] == png(0)


def test_what_img2dataset_writes_besides_tars(place: Place) -> None:
    rows = {"url": ["http://host/0"], "key": ["000"], "caption": ["one"], "status": ["success"]}
    url = place.write("inside/00000.parquet", parquet_bytes(rows | {"jpg": [png(0)]}))
    assert listed(opened(url)) == [("000", ("one",), png(0))]
    place.write("files/00000.parquet", parquet_bytes(rows))
    place.write("files/00000/000.txt", "one")
    place.pictures("files/00000/000.jpg")
    with pytest.raises(SourceError, match=r"or data\.format=folder if the images are files"):
        opened(place.url("files"))
    assert listed(opened(place.url("files"), format="folder")) == [("00000/000.jpg", ("one",), png(0))]


def test_embedded_images_are_read_in_any_order_and_told_apart(place: Place) -> None:
    count = 700
    columns = {"image": embedded(range(count), "same.png"), "text": [f"text {n}" for n in range(count)]}
    record_list = list(opened(place.write("t.parquet", parquet_bytes(columns, row_group_size=90))).records("train"))
    assert len(record_list) == count, "one path for all does not make them one image"
    for number in [*range(count), 3, 699, 350, 349, 90, 89, 0]:
        record = record_list[number]
        assert isinstance(record, Record)
        assert record.image.read() == png(number)
    assert len({r.image.identity() for r in record_list if isinstance(r, Record)}) == count
    plain = {"image": [png(1), None], "text": ["bytes", "none"]}
    found = listed(opened(place.write("p.parquet", parquet_bytes(plain))))
    assert [sample[2] for sample in found] == [png(1), "missing-file"]


def test_damaged_parquet_and_arrow_are_told(place: Place) -> None:
    whole = parquet_bytes({"image": ["a.png"] * 5000, "text": [f"text {n}" for n in range(5000)]})
    with pytest.raises(SourceError, match=r"cut.parquet cannot be read"):
        opened(place.write("cut.parquet", whole[:-30]))
    url = as_saved_data_set(place)
    path = f"{place.path}/saved/data-00000-of-00001.arrow"
    whole = place.system.cat_file(path)
    for cut in (8, len(whole) // 2, 100):
        place.system.pipe_file(path, whole[:-cut])
        with pytest.raises(SourceError, match=r"(cut short|cannot be read)"):
            list(opened(url).records("train"))


def test_a_damaged_page_of_images_is_rejected_each_time_and_the_others_are_read(tmp_path: Path) -> None:
    # Each group has its own pages; the damage is in the second's, which are compressed.
    columns = {"image": embedded(range(300)), "text": [f"text {n}" for n in range(300)]}
    path = tmp_path / "t.parquet"
    path.write_bytes(parquet_bytes(columns, row_group_size=100, compression="gzip", use_dictionary=False))
    column = pq.read_metadata(path).row_group(1).column(0)
    whole = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    whole[middle : middle + 64] = b"\0" * 64
    path.write_bytes(whole)
    found = [sample[2] for sample in listed(opened(str(path), columns={"id": "text"}))]
    assert found[:100] == [png(n) for n in range(100)]
    assert found[100:200] == ["unreadable-file"] * 100
    assert found[200:] == [png(n) for n in range(200, 300)]


def test_a_saved_dictionary_of_data_sets(place: Place) -> None:
    for number, split in enumerate(["train", "validation"]):
        batch = {"image": embedded([number]), "text": pa.array([split]), "image_id": pa.array([40 + number])}
        place.write(f"saved/{split}/data-0.arrow", arrow_stream([batch]))
        place.write(f"saved/{split}/state.json", json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    place.write("saved/dataset_dict.json", json.dumps({"splits": ["train", "validation"]}))
    source = opened(place.url("saved"))
    assert source.splits == ("train", "val")
    assert listed(source, "val") == [("41", ("validation",), png(1))]
    for names in (["../train"], [".."], [3], [], ["a/b"], ["a\\b"]):
        place.write("saved/dataset_dict.json", json.dumps({"splits": names}))
        with pytest.raises(SourceError, match="lists no splits"):
            opened(place.url("saved"))
        place.write("bad/state.json", json.dumps({"_data_files": [{"filename": name} for name in names]}))
        with pytest.raises(SourceError, match="plain file names"):
            opened(place.url("bad"))


def test_what_the_datasets_library_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(5)], "text": [f"text {n}" for n in range(5)]}
    data_set = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data_set, "validation": data_set}).save_to_disk(tmp_path / "saved")
    data_set.to_parquet(tmp_path / "t.parquet")
    expected = [(str(n), (f"text {n}",), png(n)) for n in range(5)]
    assert listed(opened(str(tmp_path / "saved")), "val") == expected
    assert listed(opened(str(tmp_path / "t.parquet"))) == expected


# Tars -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_keys_of_tars_end_at_the_first_dot(place: Place, form: int) -> None:
    long = "deep/" * 30 + "x" * 60
    members = [
        ("./a.png", png(0)),
        ("./a.txt", b"a"),
        ("dir.v1/b.png", png(1)),
        ("dir.v1/b.txt", b"b"),
        ("../../evil.png", png(2)),
        ("../../evil.txt", b"evil"),
        ("c.d.png", png(3)),
        ("c.d.txt", b"c"),
        ("c.e.png", png(4)),
        ("c.e.txt", b"c"),
        ("no-image.txt", b"none"),
        ("füchse 🦊.png", png(5)),
        ("füchse 🦊.txt", b"f"),
        (".hidden", b"skipped"),
        (f"{long}.png", png(6)),
        (f"{long}.txt", b"long"),
    ]
    if form == tarfile.USTAR_FORMAT:
        members = members[:-2]
    source = opened(place.write("t.tar", tar_bytes(members, form)))
    expected = [
        ("./a", ("a",), png(0)),
        ("dir.v1/b", ("b",), png(1)),
        ("../../evil", ("evil",), png(2)),
        ("c", (), "malformed-record"),
        ("no-image", (), "malformed-record"),
        ("füchse 🦊", ("f",), png(5)),
        (long, ("long",), png(6)),
    ]
    assert listed(source) == expected[: 6 if form == tarfile.USTAR_FORMAT else 7]
    assert "dot in its key" in details(source)[0]


def test_a_tar_s_samples_of_wrong_form(place: Place) -> None:
    members = [
        ("a.jpg", png(0)),
        ("a.json", b"{"),
        ("b.jpg", png(1)),
        ("b.json", b'{"caption": 5}'),
        ("c.jpg", png(2)),
        ("c.json", b'{"caption": null, "key": 7}'),
        ("d.jpg", png(3)),
        ("d.txt", b"caf\xe9"),
        ("e.jpg", png(4)),
    ]
    found = listed(opened(place.write("t.tar", tar_bytes(members))))
    assert [sample[2] for sample in found] == ["malformed-record", png(1), "no-captions", png(3), "no-captions"]
    assert str(found[1][1][0]) == "malformed-caption: a caption is a whole number, expected text"
    assert found[3][1] == ("caf\udce9",)


def test_ids_of_several_tars_are_unique(place: Place) -> None:
    for name in ("x", "sub/x", "y"):
        place.write(f"wds/{name}.tar", tar_bytes([("k0.png", png(0)), ("k0.txt", name.encode())]))
    assert [sample[0] for sample in listed(opened(place.url("wds")))] == ["x/k0", "y/k0", "sub/x/k0"]


def test_a_truncated_tar_gives_what_is_whole_and_says_where_it_ends(place: Place) -> None:
    whole = img2dataset_tar(0, 4)
    # A sample is 3,072 bytes: a header and a block each of image, .json and .txt.
    for cut, kept in (
        (700, 0),
        (3 * 3072, 3),
        (3 * 3072 + 100, 3),
        (3 * 3072 + 700, 3),
        (2 * 3072 + 2600, 3),
        (12288, 4),
    ):
        source = opened(place.write("t.tar", whole[:cut]))
        assert [sample[2] for sample in listed(source)] == [*map(png, range(kept)), "truncated-file"]
        assert re.search(rf"t.tar: .*{cut:,}.*cut short", details(source)[0])
    torn = whole[: 3072 * 2] + b"junk" * 128 + whole[3072 * 2 + 512 :]
    source = opened(place.write("t.tar", torn))
    assert [sample[2] for sample in listed(source)] == [png(0), png(1), "truncated-file"]
    assert f"no member begins at byte {3072 * 2:,}" in details(source)[0]
    place.write("two/0.tar", whole)
    place.write("two/1.tar", b"<html>not found</html>" * 100)
    with pytest.raises(SourceError, match=r"1.tar is no tar: it begins with b'<html>"):
        list(opened(place.url("two")).records("train"))


def test_a_tar_s_sizes_are_not_trusted(place: Place) -> None:
    header = bytearray(img2dataset_tar(0, 1)[:512])
    for size in (b"77777777777\0", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff" * 11 + b"\x00"):
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        source = opened(place.write("t.tar", bytes(header) + b"\0" * 2048))
        assert [sample[2] for sample in listed(source)] == ["truncated-file"]


def test_listing_a_local_tar_does_not_read_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sources import files

    big = [
        (f"{n}.{ending}", data) for n in range(5) for ending, data in (("jpg", os.urandom(3_000_000)), ("txt", b"x"))
    ]
    (tmp_path / "t.tar").write_bytes(tar_bytes(big))
    read = 0
    plain = files.SourceFile.read

    def counted(self: files.SourceFile, start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return plain(self, start, end)

    monkeypatch.setattr(files.SourceFile, "read", counted)
    records = list(opened(str(tmp_path / "t.tar")).records("train"))
    assert len(records) == 5
    assert read < 1_000_000


# Folders --------------------------------------------------------------------------------------------------------


def test_a_folder_s_odd_files(place: Place) -> None:
    place.pictures("p/a-1.png", "p/a.png", "p/a.b.png", "p/none.PNG", "p/sub dir/ü 🦊.png")
    for name, text in (("a-1", "1"), ("a", "2\n\n  \n"), ("a.b", "3"), ("alone", "4"), ("sub dir/ü 🦊", "\ufeff5")):
        place.write(f"p/{name}.txt", text)
    place.write("p/notes.md", "ignored")
    assert listed(opened(place.url("p"))) == [
        ("a.png", ("2",), png(1)),
        ("a-1.png", ("1",), png(0)),
        ("a.b.png", ("3",), png(2)),
        ("alone.txt", (), "missing-file"),
        ("none.PNG", (), "no-captions"),
        ("sub dir/ü 🦊.png", ("5",), png(4)),
    ]


def test_a_link_that_leads_back_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(SourceError, match=r"(does a link lead back|[Ss]ymbolic links)"):
        list(opened(str(tmp_path), format="folder").records("train"))


# Recognising ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", "no known format: it is empty"),
        ("t.jpg", b"\xff\xd8\xff\xe0 whatever", "a JPEG image; name the folder of the images"),
        ("t.html", b"<!DOCTYPE html><p>a,b</p>", "something that begins with b'<!DOCTYPE"),
        ("t.bin", b"\0\1\2,\3\n", "something that begins with"),
        ("t.tar.gz", gzip.compress(tar_bytes([("a.png", b"x")])), "a compressed tar"),
        ("t.csv.gz", b"image,caption\n", "cannot be read: Not a gzipped file"),
        ("t.txt", b"one word\n", "Expected one of karpathy, coco, csv"),
        ("t.arrow", b"\xff\xff\xff\xff\0\0", "name the folder in which save_to_disk left it"),
    ],
    ids=["empty", "jpeg", "html", "binary", "compressed-tar", "not-gzip", "one-column", "arrow-file"],
)
def test_no_known_format(place: Place, name: str, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        opened(place.write(name, data))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "wanted", ["karpathy", "coco", "csv", "jsonl", "parquet", "folder", "webdataset", "huggingface"]
)
def test_a_format_against_the_evidence_is_told(place: Place, kind: str, wanted: str) -> None:
    real = kind.partition("-")[0]
    url = FORMATS[kind](place)
    if (real, wanted) in {(wanted, wanted), ("parquet", "huggingface"), ("tsv", "csv")}:
        opened(url, format=wanted)
        return
    with pytest.raises(
        SourceError, match=f"data.format says {wanted}|or data.format|is not JSON|No known format: .* has the keys"
    ):
        source = opened(url, format=wanted)
        list(source.records("train"))


def test_names_do_not_decide(place: Place) -> None:
    place.pictures("a.png", "b.png")
    for kind, make in FORMATS.items():
        if kind in ("parquet-embedded", "huggingface", "folder"):
            continue
        path = place.system._strip_protocol(make(place))
        place.system.mv(path, f"{place.path}/data.bin")
        assert opened(place.url("data.bin")).description["format"] == kind
    table = place.write("t.txt", "image\tcap,tion\na.png\tone\n")
    assert listed(opened(table, columns={"caption": "cap,tion"}))[0][1] == ("one",)
    one_line = place.write("one.bin", '{"image": "a.png", "caption": "one"}')
    assert listed(opened(one_line))[0][1] == ("one",)


def test_folders_of_several_formats_ask_which(place: Place) -> None:
    place.pictures("mixed/a.png")
    place.write("mixed/t.csv", "image,caption\na.png,one\n")
    place.write("mixed/t.jsonl", '{"image": "a.png", "caption": "two"}\n')
    with pytest.raises(SourceError, match=r"mixed: It holds jsonl and csv and folder"):
        opened(place.url("mixed"))
    assert listed(opened(place.url("mixed"), format="jsonl"))[0][1] == ("two",)
    assert listed(opened(place.url("mixed"), format="folder"))[0][0] == "a.png"
    for name in ("0.tar", "1.tar"):
        place.write(f"tars/a/{name}", img2dataset_tar(int(name[0]), 2))
    place.write("tars/a/0.parquet", parquet_bytes({"key": ["x"], "caption": ["y"]}))
    place.write("tars/a/0_stats.json", "{}")
    assert opened(place.url("tars")).description["format"] == "webdataset", "what img2dataset leaves beside tars"
    for name, what in (("a/t.csv", "webdataset and parquet and csv"), ("b/t.parquet", "webdataset and parquet")):
        place.write(f"tars/{name}", "image,caption\n")
        with pytest.raises(SourceError, match=rf"tars: It holds {what}.*set data.format"):
            opened(place.url("tars"))
        assert opened(place.url("tars"), format="webdataset").description["format"] == "webdataset"
        place.system.rm(f"{place.path}/tars/{name}")
    place.pictures("tars/b/c.png")
    with pytest.raises(SourceError, match=r"tars: It holds webdataset and .*folder"):
        opened(place.url("tars"))
    place.write("docs/readme.md", "hello")
    with pytest.raises(SourceError, match=r"no data set: its files end in \.md"):
        opened(place.url("docs"))
    with pytest.raises(SourceError, match="different formats: train is csv, val is jsonl"):
        opened({"train": place.url("mixed/t.csv"), "val": place.url("mixed/t.jsonl")})


def test_places_that_are_not_there(place: Place) -> None:
    place.write("here.csv", "image,caption\n")
    for name, message in (
        ("absent.csv", r"absent.csv cannot be read: no such file or folder. Check the path.$"),
        ("absent/*.csv", "no file matches this pattern"),
        ("{here,gone}.csv", r"gone.csv cannot be read: no such file"),
        ("{here.csv", "a brace is not closed"),
        ("{0..99999999}.csv", "more than 1,000,000 files"),
    ):
        with pytest.raises(SourceError, match=message):
            opened(place.url(name))
    place.write("odd [1]{x}.csv", "image,caption\na.png,one\n")
    assert len(listed(opened(place.url("odd [1]{x}.csv")))) == 1, "a name may have a pattern's signs"


@pytest.mark.parametrize("source", ["", " ", {"train": ""}, "{,}"], ids=["empty", "blank", "split", "pattern"])
def test_an_empty_place_is_not_the_working_folder(source: Any) -> None:
    with pytest.raises(SourceError, match=r"data.source \(--source\) names an empty place"):
        opened(source)


def test_a_server_that_cannot_be_reached_is_not_called_an_absent_file() -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/t.csv"
        with pytest.raises(SourceError, match=r"t.csv cannot be read: Cannot connect to host 127.0.0.1"):
            opened(url)


def test_addresses_without_a_driver() -> None:
    with pytest.raises(SourceError, match=r"nosuch://x cannot be reached \(Protocol not known"):
        opened("nosuch://x")
    with pytest.raises(SourceError, match=r"driver .* is not installed .*Install it with pip"):
        opened("gs://bucket/x")
    with pytest.raises(SourceError, match="names no split"):
        opened({})


def test_coco_folders_are_listed_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"COCO_val2014_{n:012d}.png" for n in range(30)]
    place.pictures(*(f"val2014/{name}" for name in names))
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "caption": str(n)} for n in range(30)],
    }
    url = place.write("captions.json", json.dumps(content))
    asked: list[str] = []
    for method in ("info", "ls", "isdir", "isfile", "exists"):
        plain = getattr(place.system, method)

        def counted(*values: Any, plain: Any = plain, **settings: Any) -> Any:
            asked.append(values[0])
            return plain(*values, **settings)

        monkeypatch.setattr(place.system, method, counted, raising=False)
    source = opened({"val": url})
    assert len(asked) < 25
    monkeypatch.undo()
    assert [sample[2] for sample in listed(source, "val")] == [png(n) for n in range(30)]
    with pytest.raises(SourceError, match="Say which split each file is"):
        opened(url)


# Scale ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl", "list.json", "object.json", "parquet", "webdataset"])
def test_memory_is_flat_in_the_number_of_records(tmp_path: Path, form: str) -> None:
    # Lists are read in chunks: both are of some.
    counts = (8_000, 24_000) if form.endswith("json") else (2_000, 6_000 if form == "webdataset" else 20_000)
    peaks = []
    for count in counts:
        path = tmp_path / f"{count}.{form}"
        if form == "csv":
            path.write_text("image,caption,id\n" + "".join(f"a.png,text {n},{n}\n" for n in range(count)))
        elif form == "jsonl":
            path.write_text("".join(f'{{"image": "a.png", "caption": "text {n}", "id": {n}}}\n' for n in range(count)))
        elif form.endswith("json"):
            records = [{"image": "a.png", "caption": f"text {n}", "id": n} for n in range(count)]
            path.write_text(json.dumps(records if form == "list.json" else {"info": {}, "data": records}))
            del records
        elif form == "parquet":
            columns = {"image": ["a.png"] * count, "caption": [f"text {n}" for n in range(count)]}
            path.write_bytes(parquet_bytes(columns | {"id": list(range(count))}))
        else:
            path.write_bytes(tar_bytes([(f"{n}.{e}", b"x") for n in range(count) for e in ("jpg", "txt")]))
        source = opened(str(path))
        sum(1 for _ in opened(str(tmp_path / f"{counts[0]}.{form}")).records("train"))
        tracemalloc.start()
        assert sum(1 for _ in source.records("train")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Parquet's columns are read in pieces of a megabyte, if there is as much.
    assert peaks[1] < peaks[0] * 1.15 + (1_500_000 if form == "parquet" else 50_000)
