"""Samples without an image or captions, where `data.require` takes them: read, extracted, trained, measured."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from refusals import refused
from served import serving

from pipeline.extract import extract
from pipeline.inspection.cli import main as cusa_store
from pipeline.sources import Record, open_source
from stores import ExtractParameters, SourceError, Store, TrainParameters
from stores.parameters import Data, Extract, Student, Train
from train.run import run


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (number * 37 % 256, number * 91 % 256, 80)).save(stream, "PNG")
    return stream.getvalue()


BOTH, PICTURE, TEXT = "both", "picture", "text"
"""What a sample has; its id as well."""
HAS = {BOTH: (png(1), "a dog"), PICTURE: (png(2), None), TEXT: (None, "a cat")}


def as_files(folder: Path) -> Data:
    for name, (image, caption) in HAS.items():
        if image:
            (folder / f"{name}.png").write_bytes(image)
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    return Data(source=str(folder))


def as_tar(folder: Path) -> Data:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, (image, caption) in HAS.items():
            for ending, content in (("png", image), ("txt", caption and caption.encode()), ("url", b"x")):
                if content:
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return Data(source=str(folder / "a.tar"))


def as_lines(folder: Path) -> Data:
    as_files(folder)
    rows = [
        {"id": name, "image": image and f"{name}.png", "caption": caption} for name, (image, caption) in HAS.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(source=str(folder / "rows.jsonl"))


def as_parquet(folder: Path) -> Data:
    images, captions = zip(*HAS.values(), strict=True)
    table = pa.table({"id": list(HAS), "image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, folder / "rows.parquet")
    return Data(source=str(folder / "rows.parquet"))


def as_karpathy(folder: Path) -> Data:
    as_files(folder)
    entries = [
        {
            "split": "train",
            "sentences": [{"raw": caption}] * bool(caption),
            **({"filename": f"{name}.png"} if image else {}),
        }
        for name, (image, caption) in HAS.items()
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    return Data(source=str(folder / "dataset.json"))


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(as_files, id="folder"),
        pytest.param(as_tar, id="tar"),
        pytest.param(as_lines, id="jsonl"),
        pytest.param(as_parquet, id="parquet"),
        pytest.param(as_karpathy, id="karpathy"),
    ],
)
@pytest.mark.parametrize(
    ("require", "taken"),
    [
        pytest.param(["image", "text"], [BOTH], id="both"),
        pytest.param(["image"], [BOTH, PICTURE], id="image"),
        pytest.param(["text"], [BOTH, TEXT], id="text"),
        pytest.param([], [BOTH, PICTURE, TEXT], id="nothing"),
    ],
)
def test_every_format_gives_what_is_required(
    written: Callable[[Path], Data], require: list[Any], taken: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    data = replace(written(tmp_path / "data"), require=require, max_bad_fraction=1.0)
    extract(ExtractParameters(data=data, extract=Extract(workers=0)), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    texts = store.captions["text"].to_pylist()
    found = sorted(
        (
            (store.images[row], texts[first : first + count])
            for row, (first, count) in enumerate(
                zip(*(store.samples[name].to_pylist() for name in ("caption_first", "caption_count")), strict=True)
            )
        ),
        key=str,
    )
    expected = ((image or b"", [caption] if caption else []) for image, caption in map(HAS.__getitem__, taken))
    assert found == sorted(expected, key=str)
    assert not store.features("hog-color").valid[~store.images.present(np.arange(len(found)))].any()


def test_a_broken_picture_is_no_absent_one(tmp_path: Path) -> None:
    data = as_lines(tmp_path)
    (tmp_path / "both.png").write_bytes(b"no image")
    (tmp_path / "picture.png").unlink()
    parameters = ExtractParameters(
        data=Data(source=data.source, require=[], max_bad_fraction=1.0), extract=Extract(workers=0)
    )
    done = extract(parameters, tmp_path / "store")
    assert done.ingested.rejected == {"unreadable-image": 1, "missing-file": 1}


def test_a_table_of_texts_alone_has_no_image_column(tmp_path: Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"caption": f"caption {n}"}) + "\n" for n in range(3)))
    with refused(SourceError):
        list(open_source(Data(source=str(table), format="jsonl")).records("train"))
    records = list(open_source(Data(source=str(table), format="jsonl", require=["text"])).records("train"))
    assert [(r.image, r.captions) for r in records if isinstance(r, Record)] == [
        (None, (f"caption {n}",)) for n in range(3)
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which every fourth sample has no image and every third no captions; one shard is without captions."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = []
    for split, count in (("train", 32), ("val", 12), ("test", 12)):
        for n in range(count):
            (folder / f"{split}{n}.png").write_bytes(png(len(rows)))
            row = {"id": f"{split}{n}", "split": split, "label": f"class {n % 3}"}
            row |= {"image": f"{split}{n}.png"} if n % 4 != 1 else {}
            row |= {"caption": [f"a {n * 7 % 5} of {n * 3 % 7}", f"the {n}"]} if n % 3 != 2 and n < 24 else {}
            rows.append(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = ExtractParameters(
        data=Data(source=str(folder / "rows.jsonl"), require=[]), extract=Extract(workers=0, shard_size=8)
    )
    extract(parameters, folder / "store")
    assert extract(parameters, folder / "store").made == {}
    return folder / "store"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["verify", "--deep"], id="verify"),
        pytest.param(["info"], id="info"),
        pytest.param(["neighbours", "--row", "2"], id="of_a_picture"),
        pytest.param(["neighbours", "--text", "the 3"], id="of_a_text"),
        pytest.param(["missing", "--split", "train"], id="missing"),
    ],
)
def test_every_look_at_such_a_store_works(command: list[str], mixed: Path) -> None:
    result = CliRunner().invoke(cusa_store, [command[0], str(mixed), *command[1:]])
    assert (result.exit_code, result.exception) == (0, None), result.output


def test_such_a_store_is_served(mixed: Path) -> None:
    store = Store.open(mixed)
    bare = next(row for row, digest in enumerate(store.samples["image_sha256"].to_pylist()) if digest is None)
    mute = store.samples["caption_count"].to_pylist().index(0)
    with serving(mixed) as client:
        pages = [client.ask("GET", f"/sample/{bare}"), client.ask("GET", f"/sample/{mute}")]
        pages += [client.page(q="a dog", model="minilm", find="text"), client.page(row=mute, of="image")]
        assert [page.status for page in pages] == [200] * 4
        hits = client.search(text="a cat", model="minilm", modality="text", count=100).json["results"]
        told = zip(store.samples["image_sha256"].to_pylist(), store.samples["caption_count"].to_pylist(), strict=True)
        expected = {row for row, (digest, captions) in enumerate(told) if digest is None and captions}
        assert {hit["sample"] for hit in hits if hit["image"] is None} == expected
        assert client.ask("GET", f"/thumbnail/{bare}").status == 404


def test_a_store_of_such_a_store_is_the_same(mixed: Path, tmp_path: Path) -> None:
    data = Data(source=str(mixed), format="store", require=[])
    extract(ExtractParameters(data=data, extract=Extract(workers=0, shard_size=8)), tmp_path / "store")
    one, other = (Store.open(path) for path in (mixed, tmp_path / "store"))
    for column in ("source_id", "image_sha256", "caption_count", "label"):
        assert one.samples[column].to_pylist() == other.samples[column].to_pylist()


def test_a_training_takes_what_is_there(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without soft labels a caption counts even where its picture is absent; with them the teacher's row is needed."""
    train = Train(epochs=1, batch_size=8, device="cpu", precision="fp32")
    run(TrainParameters(train=train, student=Student(model="tiny_students:Tiny")), Store.open(mixed), tmp_path / "run")
    said = capsys.readouterr().err
    assert "infonce: 32 pairs an epoch" in said
    assert "soft_labels: 24 pairs an epoch" in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {name: found["RSUM"] > 0 for name, found in metrics.items()} == {"infonce": True, "soft_labels": True}
