"""cusa-eval as a person types it: models side by side, what is missing said, mistakes in one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import small_scenes
from PIL import Image
from torch import nn

from models.aligned import AlignedModel
from models.checkpoint import save_checkpoint
from models.students import load_student
from pipeline.extract import extract
from stores import ExtractParameters, Store, TrainParameters
from stores.parameters import Data, Extract, Student, Teachers, as_dict
from train.eval_cli import main
from train.evaluation.eccv import _package
from train.evaluation.evaluate import caption_pairs

CHECKOUT = Path(__file__).resolve().parents[1]
PLAIN = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]
TITLE = "store, test"
TINY = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")
LOCAL = Extract(workers=0, device="cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes_store: Store, scenes_run: Path) -> Path:
    """A working folder with the store and the run at their usual places."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "store").symlink_to(scenes_store.root)
    (tmp_path / "artifacts" / "run").symlink_to(scenes_run)
    return tmp_path


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*PLAIN, *arguments])


def written(path: str = "artifacts/eval/figures.json") -> dict[tuple[str, str], dict[str, Any]]:
    """The results in a file, by model and task."""
    return {(result["model"], result["task"]): result for result in json.loads(Path(path).read_text())["results"]}


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_run_is_measured_as_its_training_measured_it(here: Path, scenes_run: Path) -> None:
    result = evaluate("--model", "artifacts/run", "--model", "artifacts/run/infonce")
    assert result.exit_code == 0, result.stderr
    by_task = written()
    metrics = json.loads((scenes_run / "metrics.json").read_text())
    for model, title in (("artifacts/run", "soft_labels"), ("artifacts/run/infonce", "infonce")):
        expected = {name: value for name, value in metrics[title].items() if "best" not in name and "valid" not in name}
        uni_modal = expected.pop("image_class_R@1"), expected.pop("caption_spearman")
        assert by_task[model, "eccv"]["figures"] == {TITLE: expected.pop("true_relevance")}
        assert by_task[model, "retrieval"]["figures"] == {TITLE: expected}
        found = by_task[model, "image-retrieval"]["figures"][TITLE], by_task[model, "sts"]["figures"][TITLE]
        assert found == pytest.approx(uni_modal)
        assert by_task[model, "retrieval"]["counts"] == {TITLE: {"images": 20, "captions": 100}}
    line = next(line for line in result.stdout.splitlines() if "RSUM" in line)
    rsum = [metrics[title]["RSUM"] for title in ("soft_labels", "infonce")]
    assert [f"{rsum[0]:.1f}", f"{rsum[1]:.1f}", f"{rsum[1] - rsum[0]:+.1f}"] == line.replace("│", " ").split()[1:]
    assert "paper" not in result.stdout, "scenes are none of the paper's data sets"
    assert "Figures: artifacts/eval/figures.json" in result.stdout


def test_without_a_model_the_usual_run_is_measured_on_the_split_named(here: Path) -> None:
    result = evaluate("--split", "val", "--task", "retrieval", "--out", "deep/er/val")
    assert result.exit_code == 0, result.stderr
    record = json.loads(Path("deep/er/val/figures.json").read_text())
    assert {name: value for name, value in record.items() if name != "results"} == {
        "format": 1,
        "store": "artifacts/store",
        "split": "val",
        "device": "cpu",
        "precision": "fp32",
    }
    assert [one["counts"] for one in record["results"]] == [{"store, val": {"images": 12, "captions": 60}}]


def test_teachers_are_measured_by_the_store_s_features_or_by_encoding(here: Path) -> None:
    models = ["hog-color", "minilm", "tiny_teachers:mean_colour", "tiny_teachers:length"]
    result = evaluate(*(word for model in models for word in ("--model", model)))
    assert result.exit_code == 0, result.stderr
    by_task = written()
    for model in models:
        assert by_task[model, "retrieval"]["figures"] == {}
    said = words(result.stderr)
    assert "The teacher minilm embeds texts alone; retrieval needs a model that embeds images and texts" in said
    assert "minilm embeds texts; the task image-retrieval needs one of images" in said
    assert by_task["minilm", "sts"]["counts"] == by_task["tiny_teachers:length", "sts"]["counts"]
    assert by_task["hog-color", "image-retrieval"]["counts"][TITLE]["images"] == 20
    assert by_task["tiny_teachers:mean_colour", "image-retrieval"]["counts"][TITLE]["images"] == 20


def test_the_store_s_features_are_this_teacher_s_or_are_not_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "hog-color", "--task", "image-retrieval")
    evaluate(*arguments)
    taken = written()["hog-color", "image-retrieval"]
    monkeypatch.setattr("train.evaluation.on_store.TeacherOnStore._extracted", lambda *_: None)
    evaluate(*arguments)
    encoded = written()["hog-color", "image-retrieval"]
    assert taken["figures"] == encoded["figures"]
    assert "missing" not in taken["counts"][TITLE], "files are not looked for where features are taken"
    assert "missing" in encoded["counts"][TITLE]
    assert taken["counts"][TITLE].items() <= encoded["counts"][TITLE].items()


def test_rows_that_a_teacher_could_not_encode_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenes = small_scenes(train=4, val=4)
    teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e")
    extract(replace(scenes, teachers=teachers, extract=replace(scenes.extract, precision="fp32")), Path("store"))
    pairs = caption_pairs(Store.open("store"), "test")
    assert pairs is not None
    failed = np.array(["centre" in text for text in Store.open("store").captions["text"].to_pylist()[-100:]])
    result = evaluate("--model", teachers.text, "--model", teachers.image, "--store", "store")
    assert result.exit_code == 0, result.stderr
    expected = int((~failed[pairs[0]] & ~failed[pairs[1]]).sum())
    assert 0 < expected < len(pairs[0])
    assert written()[teachers.text, "sts"]["counts"] == {TITLE: {"pairs": expected}}
    assert written()[teachers.image, "image-retrieval"]["counts"][TITLE] == {"images": 20, "classes": 16, "broken": 0}


def test_what_is_missing_is_named_and_the_others_run(here: Path) -> None:
    (here / "sts").mkdir()
    (here / "sts" / "STS-B.tsv").write_text("1\ta cat\ta dog\n5\ta cat\ta cat\n3\tblue\tgreen sky\n")
    result = evaluate(
        "--images", "nowhere", "--images", "sop=elsewhere", "--sts", "sts", "--coco-annotations", "x.json"
    )
    assert result.exit_code == 0, result.stderr
    said = words(result.stderr)
    assert "nowhere, CUB-200-2011: not there" in said
    assert "elsewhere, Stanford Online Products: not there" in said
    assert "Get it from https://cvgl.stanford.edu" in said
    assert "sts, STS13: not there, expected SentEval's STS/STS13-en-test" in said
    assert "STS-B: 3 pairs found, 1,379 published" in said
    assert "x.json: does not give COCO's caption ids (FileNotFoundError" in said
    by_task = written()
    assert set(by_task["artifacts/run", "sts"]["figures"]) == {"STS-B", TITLE}
    assert set(by_task["artifacts/run", "image-retrieval"]["figures"]) == {TITLE}
    assert set(by_task["artifacts/run", "eccv"]["figures"]) == {TITLE}, "by the store's relevance all the same"


def test_without_any_data_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes_run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = ("--task", "sts", "--task", "image-retrieval", "--task", "retrieval", "--task", "eccv")
    result = evaluate("--model", str(scenes_run), *tasks)
    assert result.exit_code == 2
    said = words(result.stderr)
    assert "sts: no sentence pairs are named, and the store has none. Say --sts FOLDER" in said
    assert "--images NAME=FOLDER (cub, sop, in-shop, inaturalist)" in said
    assert "artifacts/store is not a finished store" in said
    assert "Error: Nothing was measured" in said
    assert not Path("artifacts/eval/figures.json").exists()


def labelled_store(labels: list[str]) -> None:
    """Make a store of pictures with these labels, and no other truth, in the working folder."""
    random = np.random.default_rng(0)
    rows = ["image,caption,split,label"]
    for number, label in enumerate(labels):
        Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(f"{number}.png")
        rows.append(f"{number}.png,caption {number},test,{label}")
    Path("pictures.csv").write_text("\n".join(rows))
    extract(ExtractParameters(data=Data(source="pictures.csv"), teachers=TINY, extract=LOCAL), Path("store"))
    tiny_checkpoint(Path("tiny.safetensors"))


def test_eccv_needs_coco_or_a_store_s_relevance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    labelled_store(["a", "b"])
    arguments = ("--model", "tiny.safetensors", "--store", "store", "--task", "eccv")
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert "store was not made from COCO. Expected a store made from dataset_coco.json" in words(result.stderr)
    result = evaluate(*arguments, "--coco-annotations", str(shared_data / "coco-mini" / "dataset_karpathy.json"))
    assert result.exit_code == 2
    assert "ECCV Caption needs COCO's own captions" in words(result.stderr)


def test_one_labelled_image_costs_no_other_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labelled_store(["alone"])
    result = evaluate("--model", "tiny.safetensors", "--store", "store")
    assert result.exit_code == 0, result.stderr
    assert written()["tiny.safetensors", "retrieval"]["figures"][TITLE]["RSUM"] == 600.0
    assert "The nearest other row was asked for among 1" in words(result.stderr)


def test_a_partly_labelled_split_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labelled_store(["a", "", "a"])
    arguments = ("--model", "tiny.safetensors", "--store", "store", "--task", "image-retrieval")
    for more in ((), ("--images", "nowhere")):
        result = evaluate(*arguments, *more)
        assert result.exit_code == 2
        assert "1 of the 3 images of the split 'test' have no label" in words(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "artifacts/rum"], "artifacts/rum is no run and no checkpoint"),
        (["--model", "artifacts"], "artifacts holds no best.safetensors"),
        (["--model", "nonsense"], "No teacher is called 'nonsense'"),
        (["--model", "open-clip:ViT-B-32"], "random ones are not measured"),
        (["--model", "a:b", "--model", "a:b"], "names one model twice"),
        (["--weights", "x.pt"], "--weights: found 'x.pt', expected MODEL=FILE"),
        (["--weights", "artifacts/run=x.pt"], "takes no separate weights"),
        (["--task", "retreival"], "is not one of 'retrieval'"),
        (["--images", "cub="], "'cub=' names no folder"),
        (["--images", "birds=there"], "'birds' is not one of cub, sop, in-shop, inaturalist"),
        (["--split", "dev"], "no split 'dev'; it has train, val, test"),
        (["--store", "artifacts"], "artifacts is not a finished store"),
        (["--device", "gpu7"], "device: cannot be used (Invalid device string"),
        (["--out", "file"], "file, --out: is a file, expected a folder"),
        (["--out", "file/eval"], "file/eval, --out: cannot be written"),
    ],
    ids=[
        "no-run",
        "no-checkpoint",
        "unknown-teacher",
        "random-weights",
        "named-twice",
        "weights-of-no-model",
        "weights-not-taken",
        "unknown-task",
        "no-folder",
        "unknown-benchmark",
        "unknown-split",
        "no-store",
        "unknown-device",
        "out-is-a-file",
        "out-in-a-file",
    ],
)
def test_mistakes_are_one_message(here: Path, arguments: list[str], message: str) -> None:
    (here / "file").touch()
    result = evaluate(*arguments)
    assert result.exit_code == 2, result.output
    assert message in words(result.stderr)
    assert "Traceback" not in result.output


def test_the_figures_until_an_interrupt_are_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.evaluation.on_store.StudentOnStore.sts", interrupted)
    result = evaluate()
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Stopped. What was measured is in artifacts/eval/figures.json."
    assert [task for _, task in written()] == ["retrieval", "eccv", "image-retrieval"]


def test_a_broken_model_does_not_stop_the_others(here: Path, scenes_run: Path) -> None:
    tiny_checkpoint(here / "nan.safetensors", lambda model: nn.init.constant_(model.heads["image"][1].bias, torch.nan))
    result = evaluate("--model", "nan.safetensors", "--model", "artifacts/run", "--task", "retrieval")
    assert result.exit_code == 0
    assert "The embeddings hold values that are not finite" in words(result.stderr)
    assert written()["nan.safetensors", "retrieval"]["figures"] == {}
    assert written()["artifacts/run", "retrieval"]["figures"][TITLE]["RSUM"] > 0


def test_names_are_neither_markup_nor_what_steers_a_terminal(here: Path, scenes_store: Store, scenes_run: Path) -> None:
    (here / "[red]\x1b[2J").symlink_to(scenes_run)
    (here / "[bold").symlink_to(scenes_store.root)
    result = evaluate("--model", "[red]\x1b[2J", "--store", "[bold")
    assert result.exit_code == 0, result.output
    assert "[red]" in result.stdout
    assert "\x1b[2J" not in result.stdout


def coco_store(images: dict[int, list[int]]) -> None:
    """Make a store of COCO's ids in the working folder, from Karpathy's file with captions and pictures made up."""
    random = np.random.default_rng(0)
    for number in range(50):
        Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(f"{number}.png")
    entries = [
        {
            "cocoid": image,
            "filename": f"{number % 50}.png",
            "split": "test",
            "sentences": [{"raw": f"caption {caption}", "sentid": caption} for caption in captions],
        }
        for number, (image, captions) in enumerate(images.items())
    ]
    Path("dataset_coco.json").write_text(json.dumps({"images": entries}))
    # Its fifty pictures stand for five thousand.
    data = Data(source="dataset_coco.json", merge="none")
    extract(ExtractParameters(data=data, teachers=TINY, extract=LOCAL), Path("store"))


def tiny_checkpoint(path: Path, change: Callable[[AlignedModel], object] = lambda _: None) -> None:
    student = Student(model="tiny_students:Tiny")
    model = AlignedModel(load_student(student))
    change(model)
    save_checkpoint(path, {"model": model}, {"epoch": 0, "parameters": as_dict(TrainParameters(student=student))})


def test_a_part_of_coco_is_not_taken_for_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco_store({391895: [770337, 771687], 60623: [680361]})
    tiny_checkpoint(Path("tiny.safetensors"))
    arguments = ("--model", "tiny.safetensors", "--store", "store", "--task", "retrieval", "--task", "eccv")
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.stderr
    assert list(written()["tiny.safetensors", "retrieval"]["figures"]) == [TITLE]
    assert "paper" not in result.stdout
    # The file that the store was made from gives the ids of its captions; the split is not whole.
    assert "defined on the whole test split of COCO (Karpathy's), 5,000 images: 4,99" in words(result.stderr)
    Path("dataset_coco.json").unlink()
    result = evaluate(*arguments)
    assert "store was made from dataset_coco.json, which is not there now" in words(result.stderr)


@pytest.mark.soak
def test_coco_s_whole_test_split_with_eccv_and_five_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco_store(_package().coco_gts["i2t"])
    tiny_checkpoint(Path("tiny.safetensors"))
    result = evaluate("--model", "tiny.safetensors", "--store", "store")
    assert result.exit_code == 0, result.stderr
    retrieval = written()["tiny.safetensors", "retrieval"]["figures"]
    eccv = written()["tiny.safetensors", "eccv"]["figures"]
    assert list(retrieval) == ["COCO 5K", "COCO 1K (mean of 5 folds)"]
    assert list(eccv) == ["ECCV Caption", "CxC", "COCO 5K"]
    for direction in ("image_to_text", "text_to_image"):
        assert eccv["COCO 5K"][direction] == pytest.approx(retrieval["COCO 5K"][direction])
    assert eccv["COCO 5K"]["RSUM"] == pytest.approx(retrieval["COCO 5K"]["RSUM"])
    assert retrieval["COCO 1K (mean of 5 folds)"]["RSUM"] > retrieval["COCO 5K"]["RSUM"]
    assert "422.6  429.7" in result.stdout
