"""SCAN's precomputed regions as a source: both forms, with and without images, and what does not fit together."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from PIL import Image

from models.students import load_student
from pipeline.extract import extract
from pipeline.inspection.cli import main as store_command
from pipeline.sources import open_source
from stores import ExtractParameters, Store, TrainParameters
from stores.errors import SourceError
from stores.parameters import Data, Evaluation, Extract, Loss, Rerank, Sgraf, Student, Teachers, Train
from train.eval_cli import main as eval_command
from train.evaluation.models import load_model
from train.run import run

SIZES = {"train": 7, "dev": 3, "test": 2, "testall": 4}


def published(folder: Path, repeated: tuple[str, ...] = (), ids: bool = True) -> np.ndarray:
    """Write a folder as SCAN's; return the regions of train, dev and testall."""
    generator, everything = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for split, images in SIZES.items():
        regions = generator.random((images, 4, 6), np.float32)
        np.save(folder / f"{split}_ims.npy", regions.repeat(5, axis=0) if split in repeated else regions)
        captions = [f"{split} image {image} caption {number}" for image in range(images) for number in range(5)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
        if ids:
            named = [f"{split}{1000 + image}" for image in range(images)]
            again = 5 if split in repeated else 1
            (folder / f"{split}_ids.txt").write_text("".join(f"{name}\n" * again for name in named))
        everything += [] if split == "test" else [regions]
    return np.concatenate(everything)


def given(folder: Path, **settings: object) -> ExtractParameters:
    data = Data(source=str(folder), **{"require": ["text"], **settings})  # type: ignore[arg-type]
    teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")
    return ExtractParameters(data=data, teachers=teachers, extract=Extract(shard_size=5, workers=0))


@pytest.mark.parametrize("repeated", [(), ("dev", "testall")], ids=["plain", "repeated"])
def test_regions_and_captions_come_without_images(tmp_path: Path, repeated: tuple[str, ...]) -> None:
    regions = published(tmp_path / "data", repeated)
    extract(given(tmp_path / "data"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert {split: len(store.rows(split, "sample")) for split in ("train", "val", "test")} == {
        "train": 7,
        "val": 3,
        "test": 4,
    }
    features = store.features("regions")
    assert (features.shape, features.valid.all(), features.unit) == ((4, 6), True, False)
    np.testing.assert_array_equal(features.gather(np.arange(14)), regions.astype(np.float16))
    captions = store.captions.slice(7 * 5, 5)
    assert captions["text"].to_pylist() == [f"dev image 0 caption {number}" for number in range(5)]
    assert store.samples["source_id"].to_pylist()[7:9] == ["val/dev1000", "val/dev1001"]
    assert extract(given(tmp_path / "data"), tmp_path / "store").made == {}


def test_images_come_by_id(tmp_path: Path) -> None:
    published(tmp_path / "data")
    (tmp_path / "images").mkdir()
    for split, images in SIZES.items():
        for image in range(images):
            colour = (10 * image, len(split) * 20, 50)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / f"{split}{1000 + image}.png")
    parameters = given(tmp_path / "data", images=str(tmp_path / "images"), require=["image", "text"])
    extract(replace(parameters, data=replace(parameters.data, merge="none")), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.samples["width"].to_pylist() == [8] * 14
    assert len(store.features("regions").valid) == 14


def _cut(folder: Path) -> None:
    path = folder / "dev_ims.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _objects(folder: Path) -> None:
    np.save(folder / "dev_ims.npy", np.array([{}] * 3, dtype=object), allow_pickle=True)


def _rows(folder: Path) -> None:
    np.save(folder / "dev_ims.npy", np.zeros((4, 4, 6), np.float32))


def _ids(folder: Path) -> None:
    (folder / "dev_ids.txt").write_text("1\n1\n2\n")


def _shapes(folder: Path) -> None:
    np.save(folder / "dev_ims.npy", np.zeros((3, 4, 5), np.float32))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, r"dev_ims.npy: found 'float32 (3, 4, 6) in "),
        (_objects, r"dev_ims.npy: found 'object (3,) in "),
        (_rows, r"dev_ims.npy: rows, found '4', expected 3 or 15, for 15 captions"),
        (_ids, r"dev_ids.txt: ids, found '3, 2 different', expected 3 different ids"),
        (_shapes, r"regions of several shapes, found 'testall_ims.npy (4, 6), dev_ims.npy (4, 5)'"),
    ],
    ids=["cut", "objects", "rows", "ids", "shapes"],
)
def test_what_does_not_fit_together_is_said(tmp_path: Path, spoil: object, said: str) -> None:
    published(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(SourceError, match=re.escape(said)):
        open_source(given(tmp_path).data)


def test_images_are_asked_for_where_they_are_required(tmp_path: Path) -> None:
    published(tmp_path, ids=False)
    assert next(iter(open_source(given(tmp_path).data).records("val"))).source_id == "val/0"
    with pytest.raises(SourceError, match=r"no images\. Take samples without images by data\.require: \[text\]"):
        open_source(Data(source=str(tmp_path)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGR and SAF trained on a folder of SCAN's form, whose captions name a word for the region that an image shows."""
    folder, generator = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    shown = generator.random((8, 6), np.float32)
    (folder / "data").mkdir()
    for split, images in {"train": 40, "dev": 8, "test": 8}.items():
        kinds = np.stack([generator.permutation(8)[:4] for _ in range(images)])
        np.save(
            folder / "data" / f"{split}_ims.npy", shown[kinds] + 0.05 * generator.random((images, 4, 6), np.float32)
        )
        lines = [" ".join(f"thing{kind}" for kind in some[: 1 + number % 4]) for some in kinds for number in range(5)]
        (folder / "data" / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    extract(given(folder / "data"), folder / "store")
    written = CliRunner().invoke(store_command, ["vocabulary", str(folder / "store"), "--out", str(folder / "v.json")])
    assert "12 words" in written.output
    for kind in ("SGR", "SAF"):
        sizes = Sgraf(vocabulary=str(folder / "v.json"), dim=16, word=8, similarity=8)
        parameters = TrainParameters(
            teachers=Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length"),
            student=Student(model=f"sgraf:{kind}", sgraf=sizes, gradient_checkpointing=kind == "SAF"),
            loss=Loss(original="hinge", alpha=0.0, beta=0.0),
            train=Train(epochs=1, batch_size=40, device="cpu", precision="fp32", compare=False, learning_rate=0.01),
            # SAF's own first stage is the cosine: the ensemble must add up scores all the same.
            eval=Evaluation(rerank=Rerank(student="self", k=4) if kind == "SAF" else None),
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        run(parameters, Store.open(folder / "store"), folder / kind)
    return folder


def test_sgraf_is_trained_without_images_and_is_the_mean_of_its_two_runs(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "SAF + 1").symlink_to(trained / "SAF")
    runs = [str(trained / "SGR"), str(tmp_path / "SAF + 1")]  # a name may hold a plus sign
    models = [argument for spec in (*runs, "+".join(runs)) for argument in ("--model", spec)]
    where = ["--store", str(trained / "store"), "--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0"]
    where += ["--precision", "fp32"]
    measured = CliRunner().invoke(eval_command, [*models, "--task", "retrieval", "--task", "sts", *where])
    assert measured.exit_code == 0, measured.output
    found = {
        result["model"]: next(iter(result["figures"].values()))
        for result in json.loads((tmp_path / "out" / "figures.json").read_text())["results"]
        if result["task"] == "retrieval"
    }
    assert "embeds nothing" in measured.stderr
    store, scores = Store.open(trained / "store"), 0.0
    regions = torch.from_numpy(store.features("regions").gather(store.rows("test", "sample"))).float()
    texts = store.captions["text"].take(store.rows("test", "caption")).to_pylist()
    for name in runs:
        student = load_model(name, device="cpu").aligned
        with torch.inference_mode():
            encoded = student.encode("text", student.interface.inputs["text"].texts(texts))
            scores = scores + student.scorer.matrix(student.encode("image", regions), encoded).numpy() / 2
        metrics = json.loads((Path(name) / "metrics.json").read_text())["hinge"]
        assert metrics["RSUM"] == pytest.approx(found[name]["RSUM"])
    own = scores[np.arange(40) // 5, np.arange(40)]
    ranks, ours = (scores > own).sum(axis=0), found["+".join(runs)]
    hits = {f"R@{k}": 100 * (ranks < k).mean() for k in (1, 5, 10)}
    assert ours["text_to_image"] == pytest.approx(hits)
    assert ours["median_rank"]["text_to_image"] == pytest.approx(1 + np.median(ranks))
    # What its page says of loading it works as it stands.
    (code,) = re.findall(r"```python\n(.*?)```", (trained / "SGR" / "README.md").read_text(), flags=re.S)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert torch.equal(
        namespace["student"].state_dict()["txt_enc.embed.weight"],
        load_model(runs[0], device="cpu").aligned.student.state_dict()["txt_enc.embed.weight"],
    )
    # The student that a run leaves is a file to begin from, and a run keeps the words that it learned by.
    (trained / "v.json").rename(trained / "gone.json")
    again = load_student(Student(model=f"sgraf:SGR/{trained / 'SGR' / 'student.safetensors'}"))
    assert (trained / "SGR" / "vocabulary.json").read_bytes() == (trained / "gone.json").read_bytes()
    assert torch.equal(
        again.inputs["text"].texts(["thing3"]).values, student.interface.inputs["text"].texts(["thing3"]).values
    )
    former = load_model(runs[0], device="cpu").aligned.student
    for name, tensor in former.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
