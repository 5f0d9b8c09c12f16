"""Records of one picture are one sample: in any format, wherever they stand, by path or by bytes, in flat memory."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED, content
from merged_sources import merged_source
from PIL import Image
from refusals import refused

from pipeline.extract import extract
from pipeline.inspection.verify import render, verify
from pipeline.pictures import shared_lines
from pipeline.sources import BadRecord, Record, Rejected, Source, open_source
from pipeline.summary import summary
from stores import ExtractParameters, Store
from stores.console import console
from stores.errors import TooManyRejectedError
from stores.parameters import Columns, Data, Extract

CASES = SHARED.parent / "cases"


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 40 % 256, 90, number % 256)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures in a folder; d.png is a copy of a.png."""
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / f"{name}.png").write_bytes(picture(number))
    (tmp_path / "d.png").write_bytes(picture(0))
    return tmp_path


def read(source: Source, folder: Path, merge: Any = "path", split: str = "train") -> list[tuple[str, list[str]]]:
    with merged_source(source, folder, merge) as once:
        records = list(once.records(split))
        assert once.count(split) in (None, len(records))
        assert [str(record) for record in once.records(split)] == [str(record) for record in records]
    assert not list(folder.glob("*.tmp-*"))
    return [
        (record.source_id, [str(caption) for caption in record.captions])
        if isinstance(record, Record)
        else (record.source_id, [f"bad: {record.rejected.reason}"])
        for record in records
    ]


def csv(folder: Path, *rows: str) -> Source:
    (folder / "t.csv").write_text("\n".join(("image,caption", *rows)) + "\n")
    return open_source(Data(source=str(folder / "t.csv")))


def test_rows_join_wherever_they_stand_in_the_rows_order(pictures: Path) -> None:
    names = ("a.png", "b.png", "./a.png", "c.png", f"{pictures}//b.png", "x/../a.png", "d.png")
    source = csv(pictures, *(f"{name},{number}" for number, name in enumerate(names, start=1)))
    by_path = read(source, pictures)
    assert by_path == [("0", ["1", "3"]), ("1", ["2", "5"]), ("3", ["4"]), ("5", ["6"]), ("6", ["7"])]
    assert read(source, pictures, "none") == [(str(n), [str(n + 1)]) for n in range(7)]
    by_bytes = read(source, pictures, "bytes")
    assert by_bytes == [("0", ["1", "3", "7"]), ("1", ["2", "5"]), ("3", ["4"]), ("5", ["6"])], (
        "a path that leads out is read by nobody"
    )


@pytest.mark.parametrize("rows", [0, 1, 2, 129])
def test_few_and_many_rows(pictures: Path, rows: int) -> None:
    found = read(csv(pictures, *(f"a.png,{number}" for number in range(rows))), pictures)
    assert found == ([("0", [str(number) for number in range(rows)])] if rows else [])


def test_bad_rows_and_missing_pictures_stay_where_they_are(pictures: Path) -> None:
    source = csv(pictures, "gone.png,1", "a.png,2", "a.png", "gone.png,3", ",4", "a.png,\"['x', 'y\"", "a.png,5")
    bad = "bad: malformed-record"
    first, second, *others = read(source, pictures)
    assert first == ("0", ["1", "3"])
    assert second[1][0] == "2"
    assert "malformed-caption" in second[1][1]
    assert second[1][2] == "5"
    assert others == [("2", [bad]), ("4", [bad])]
    apart = read(source, pictures, "bytes")
    assert [captions for _, captions in apart if "1" in captions or "3" in captions] == [["1"], ["3"]], "not to be read"


def test_labels_of_one_picture(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,caption,label\na.png,1,\na.png,2,cat\na.png,3,dog\nb.png,4,x\nb.png,5,x\n")
    with merged_source(open_source(Data(source=str(pictures / "t.csv"))), pictures) as once:
        assert [record.label for record in once.records("train") if isinstance(record, Record)] == ["cat", "x"]
        assert once.relabelled == {"train": 1}  # type: ignore[attr-defined]


def test_splits_are_apart(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,caption,split\na.png,1,train\na.png,2,test\na.png,3,train\na.png,4,test\n")
    source = open_source(Data(source=str(pictures / "t.csv")))
    assert read(source, pictures) == [("0", ["1", "3"])]
    assert read(source, pictures, split="test") == [("1", ["2", "4"])]


def as_coco(folder: Path) -> Any:
    names = ["a.png", "b.png", "a.png", "c.png"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": str(number)} for number in range(4)]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"train": str(folder / "coco.json")}


def as_tar(folder: Path) -> str:
    with tarfile.open(folder / "t.tar", "w") as tar:
        for number, of in enumerate([0, 1, 0, 2]):
            for ending, data in (("png", picture(of)), ("txt", str(number).encode())):
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder / "t.tar")


def as_parquet(folder: Path) -> str:
    images = [{"bytes": picture(of), "path": f"{number}.png"} for number, of in enumerate([0, 1, 0, 2])]
    table = pa.table({"image": images, "caption": [[str(number)] for number in range(4)]})
    pq.write_table(table, folder / "t.parquet", row_group_size=1)
    return str(folder / "t.parquet")


def as_jsonl(folder: Path) -> str:
    rows = [{"image": f"{'abac'[n]}.png", "caption": str(n), "id": f"caption {n}"} for n in range(4)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "t.jsonl")


@pytest.mark.parametrize("make", [as_coco, as_tar, as_parquet, as_jsonl], ids=["coco", "tar", "parquet", "jsonl"])
@pytest.mark.parametrize("merge", ["path", "bytes"])
def test_a_record_per_caption_in_every_format(pictures: Path, make: Any, merge: str) -> None:
    source = open_source(Data(source=make(pictures)))
    assert [captions for _, captions in read(source, pictures, merge)] == [["0", "2"], ["1"], ["3"]]
    assert [captions for _, captions in read(source, pictures, "none")] == [["0"], ["1"], ["2"], ["3"]]


def test_captions_that_no_text_file_holds_survive(pictures: Path) -> None:
    odd = ["\udcff\udc80", "\0", "line\nbreak", "🦊", "x" * 200_000]
    rows = "".join(json.dumps({"image": "a.png", "caption": text}) + "\n" for text in odd)
    (pictures / "t.jsonl").write_text(rows)
    assert read(open_source(Data(source=str(pictures / "t.jsonl"))), pictures) == [("0", odd)]


def stored(folder: Path, source: Any, merge: Any = "path", name: str = "store", bad: float = 0.05) -> Store:
    data = Data(source=source, merge=merge, columns=Columns(), max_bad_fraction=bad)
    parameters = ExtractParameters(data=data, extract=Extract(shard_size=3, workers=0))
    extracted = extract(parameters, folder / name)
    with console.capture() as shown:
        console.print(summary(extracted, folder / name))
    (folder / f"{name}.txt").write_text(" ".join(shown.get().replace("│", " ").split()))
    return Store.open(folder / name)


def test_what_was_merged_and_what_stands_twice_is_said(pictures: Path) -> None:
    (pictures / "t.csv").write_text(
        "image,caption,split\na.png,1,train\nb.png,2,train\na.png,3,train\nd.png,4,train\nb.png,5,test\nc.png,6,test\n"
    )
    store = stored(pictures, str(pictures / "t.csv"))
    assert store.manifest.merged == {"train": 1}
    assert store.manifest.shared == {"train": {"train": 1}, "test": {"train": 1}}
    told = (pictures / "store.txt").read_text()
    assert "same picture (data.merge): train 1" in told
    twice = "1 of 2 samples of test show a picture that stands in train too"
    assert twice in told
    assert shared_lines(store.manifest)[1] == twice
    report = verify(pictures / "store")
    assert report.whole
    assert twice in report.remarks
    with console.capture() as shown:
        for part in render(report):
            console.print(part)
    assert twice in " ".join(shown.get().split())
    again = stored(pictures, str(pictures / "t.csv"))
    assert again.manifest == store.manifest
    assert "nothing to do" in (pictures / "store.txt").read_text()
    by_bytes = stored(pictures, str(pictures / "t.csv"), "bytes", "other")
    assert by_bytes.manifest.shared == {"test": {"train": 1}}
    assert by_bytes.manifest.merged == {"train": 2}


def test_a_shuffled_table_gives_the_samples_of_the_ordered_one(pictures: Path) -> None:
    rows = [f"{name}.png,{name}{number}" for name in "abcd" for number in range(5)]
    ordered = {tuple(captions) for _, captions in read(csv(pictures, *rows), pictures)}
    random.Random(7).shuffle(rows)
    shuffled = {tuple(sorted(captions)) for _, captions in read(csv(pictures, *rows), pictures)}
    assert shuffled == ordered
    assert len(ordered) == 4
    stored(pictures, str(pictures / "t.csv"), name="one")
    stored(pictures, str(pictures / "t.csv"), name="two")
    one, two = (content(pictures / name) for name in ("one", "two"))
    assert one == two


def test_names_with_brackets_are_no_markup(pictures: Path) -> None:
    (pictures / "t.csv").write_text("id,image,caption\nshelf[/2],gone.png,x\n1,[bold]q.png,x\n2,a.png,y\n")
    stored(pictures, str(pictures / "t.csv"), bad=1.0, name="s[bold]")
    told = (pictures / "s[bold].txt").read_text()
    assert "missing-file 2, first 'shelf[/2]'" in told
    assert "/s[bold]" in told


def test_captions_lost_with_a_sample_are_counted(pictures: Path) -> None:
    rows = [f"{'b' if number % 2 else 'a'}.png,{number}" for number in range(40)]
    csv(pictures, *rows, "gone.png,1", "gone.png,2", "gone.png,3")
    with refused(TooManyRejectedError, where="samples", found=1) as caught:
        stored(pictures, str(pictures / "t.csv"))
    _, reason, lost = caught.value.format_message().splitlines()
    assert reason.startswith("  missing-file 1, first '40': ")
    assert lost == "3 captions went with these samples."
    parameters = ExtractParameters(data=Data(source=str(pictures / "t.csv"), max_bad_fraction=0.5))
    assert extract(parameters, pictures / "store").ingested.lost_captions == 3


def test_a_bad_row_takes_no_id_from_a_good_one(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,image_id,caption\n,7,lost\na.png,7,1\nb.png,8,2\na.png,7,3\nc.png,8,4\n")
    store = stored(pictures, str(pictures / "t.csv"), bad=0.5)
    assert store.captions["text"].to_pylist() == ["1", "3", "2"]
    lines = [json.loads(line) for line in (pictures / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["malformed-record", "duplicate-id"]
    assert "set data.columns.id to the image's column" in lines[1]["detail"]


def test_few_bad_rows_of_many_do_not_stop_a_run_of_few_pictures(pictures: Path) -> None:
    rows = [f"{'abc'[number % 3]}.png,{number}" for number in range(197)]
    csv(pictures, *rows, "a.png", "a.png", "a.png")
    assert len(stored(pictures, str(pictures / "t.csv")).captions) == 197


def test_one_id_in_two_splits(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,image_id,caption,split\na.png,1,x,train\na.png,1,y,test\nb.png,2,z,test\n")
    store = stored(pictures, str(pictures / "t.csv"))
    assert store.manifest.shared == {"test": {"train": 1}}
    assert store.samples["source_id"].to_pylist() == ["1", "1", "2"]


def test_a_coco_image_that_is_listed_twice_is_one(pictures: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    annotations = [{"image_id": number, "caption": str(number)} for number in (1, 1, 2)]
    (pictures / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    store = stored(pictures, {"train": str(pictures / "coco.json")})
    assert store.captions["text"].to_pylist() == ["1", "1", "2"]
    assert store.manifest.merged == {"train": 1}


@pytest.mark.parametrize("name", ["shuffled.csv", "with_id.csv"])
def test_the_cases_that_people_sent(shared_data: Path, tmp_path: Path, name: str) -> None:
    images = str(shared_data / "coco-mini" / "images")
    source = open_source(Data(source=str(CASES / name), images=images))
    with merged_source(source, tmp_path) as once:
        records = [record for record in once.records("train") if isinstance(record, Record)]
        assert once.merged == {"train": 160}  # type: ignore[attr-defined]
    assert [len(record.captions) for record in records] == [5] * 40
    assert len({record.image.read() for record in records}) == 40


def test_a_record_that_is_bad_is_never_first(pictures: Path) -> None:
    class Odd:
        """A source whose first record of a picture cannot be used."""

        splits = ("train",)

        @property
        def description(self) -> dict[str, Any]:
            return {}

        def id_scope(self, split: str) -> str:
            return split

        def count(self, split: str) -> None:
            return None

        def records(self, split: str) -> Any:
            good = next(csv(pictures, "a.png,1").records("train"))
            yield BadRecord(source_id="x", rejected=Rejected("malformed-record", "odd"), captions=2)
            yield from (good, good)

    assert read(Odd(), pictures) == [("x", ["bad: malformed-record"]), ("0", ["1", "1"])]
