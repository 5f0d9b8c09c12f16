"""Recipes: each loads for both commands, says what docs/methods.md says, and its commands are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import open_clip
import pytest

from models.teachers import FAMILIES
from models.teachers.unicom import MODELS
from pipeline.cli import main as extract_command
from stores import ExtractParameters, TrainParameters, load_parameters
from train.cli import main as train_command

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STUDENTS = {"b32": "ViT-B-32-quickgelu", "l14-336": "ViT-L-14-336-quickgelu"}
EPOCHS = {"coco": 30, "flickr30k": 40}
# Base and + CUSA: RSUM, ECCV mAP@R image→text and text→image (COCO alone), image R@1, STS.
TARGETS = {
    "clip-b32-coco": "422.6 429.7 28.5 29.6 41.7 45.2 40.7 46.5 69.4 73.2",
    "clip-b32-flickr30k": "520.0 526.3 40.7 46.5 69.4 73.2",
    "clip-l14-336-coco": "469.6 473.1 32.8 33.6 45.5 47.6 57.4 61.8 71.9 74.5",
    "clip-l14-336-flickr30k": "554.5 560.2 57.4 61.8 71.9 74.5",
}


def header(name: str) -> list[str]:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def test_there_is_a_recipe_for_each_model_and_data_set() -> None:
    assert sorted(path.stem for path in RECIPES.glob("clip-*.yaml")) == sorted(TARGETS)
    assert sorted(f"clip-{model}-{data}" for model in STUDENTS for data in EPOCHS) == sorted(TARGETS)


@pytest.mark.parametrize("model", STUDENTS)
@pytest.mark.parametrize("data", EPOCHS)
def test_a_recipe_has_the_paper_s_settings(model: str, data: str) -> None:
    path = RECIPES / f"clip-{model}-{data}.yaml"
    extract, train = load_parameters(ExtractParameters, path), load_parameters(TrainParameters, path)
    assert Path(str(extract.data.source)).name == f"dataset_{data}.json"
    assert extract.data.format == "karpathy"
    assert extract.teachers == train.teachers
    assert (train.teachers.image, train.teachers.text) == (
        "unicom:ViT-B/32",
        "sentence-transformers:all-mpnet-base-v2",
    )
    assert train.student.model == f"open-clip:{STUDENTS[model]}/openai"
    assert train.student.freeze == []
    loss, settings = train.loss, train.train
    assert (loss.alpha, loss.beta, loss.teacher_temperature, loss.soft_top_k) == (0.1, 0.5, 1.0, None)
    assert (loss.mix, loss.reduction) == ("each", "mean")
    assert (settings.learning_rate, settings.final_learning_rate, settings.weight_decay) == (1e-5, 1e-6, 1e-4)
    assert (settings.epochs, settings.batch_size, settings.warmup) == (EPOCHS[data], 4 * 128, 0.0)
    assert (settings.captions, settings.augment, settings.precision, settings.compare) == ("all", False, "bf16", True)
    assert (train.eval.validation, train.eval.test) == ("val", "test")


@pytest.mark.parametrize("name", TARGETS)
def test_the_models_exist(name: str) -> None:
    train = load_parameters(TrainParameters, RECIPES / f"{name}.yaml")
    student, tag = train.student.model.removeprefix("open-clip:").split("/")
    assert (student, tag) in open_clip.list_pretrained()
    weights, config = open_clip.get_pretrained_cfg(student, tag), open_clip.get_model_config(student)
    assert weights["quick_gelu"] is config["quick_gelu"] is True
    for teacher in (train.teachers.image, train.teachers.text):
        assert teacher.partition(":")[0] in {family.partition(":")[0] for family in FAMILIES}
    assert train.teachers.image.removeprefix("unicom:") in MODELS


@pytest.mark.parametrize("name", TARGETS)
def test_the_header_has_commands_that_exist_and_the_paper_s_figures(name: str) -> None:
    lines = header(name)
    commands: dict[str, click.Command] = {"cusa-extract": extract_command, "cusa-train": train_command}
    stores = set()
    for command, parsed in commands.items():
        (line,) = [line for line in lines if line.startswith(command) and "--params" in line]
        given: dict[str, Any] = parsed.make_context(command, shlex.split(line)[1:]).params
        assert given["params"] == Path("recipes") / f"{name}.yaml"
        stores.add(given["store"])
    assert len(stores) == 1, "one command reads what the other writes"
    rows = [re.findall(r"\d+\.\d", line) for line in lines if re.search(r" \d+\.\d +\d+\.\d$", line)]
    assert [figure for row in rows for figure in row] == TARGETS[name].split()
    assert any("recipes/README.md" in line for line in lines), "where the deviations are"


def test_the_table_of_recipes_has_the_same_figures() -> None:
    table = (RECIPES / "README.md").read_text()
    for name, figures in TARGETS.items():
        base, aligned, *_ = figures.split()
        assert re.search(rf"\]\({name}\.yaml\) \|.*: {base} → {aligned} \|", table)


@pytest.mark.parametrize(
    ("data", "target"), [("flickr30k", "491.1 503.7 500.0 514.1"), ("coco", "419.6 427.9 428.3 439.2")]
)
def test_sgraf_s_recipes_have_its_settings(data: str, target: str) -> None:
    path = RECIPES / f"sgr-{data}.yaml"
    train = load_parameters(TrainParameters, path)
    assert load_parameters(ExtractParameters, path).data.format == "precomp"
    loss, settings = train.loss, train.train
    assert (loss.original, loss.hinge.margin, loss.hinge.negatives, loss.hinge.reduction) == (
        "hinge",
        0.2,
        "hardest",
        "sum",
    )
    assert (loss.alpha, loss.beta, loss.teacher_temperature) == (0.6, 0.75, 1.0)
    assert (settings.learning_rate, settings.final_learning_rate, settings.weight_decay) == (2e-4, 1e-5, 1e-4)
    assert (settings.batch_size, settings.clip_norm, settings.epochs, train.student.model) == (
        128,
        2.0,
        40,
        "sgraf:SGR",
    )


@pytest.mark.parametrize(("data", "k", "target"), [("coco", 256, "523.8 525.8"), ("flickr30k", 128, "586.4 588.1")])
def test_x2vlm_s_recipes_have_its_settings(data: str, k: int, target: str) -> None:
    path = RECIPES / f"x2vlm-base-{data}.yaml"
    train = load_parameters(TrainParameters, path)
    assert load_parameters(ExtractParameters, path).data.format == "karpathy"
    assert (train.loss.recipe, train.loss.alpha, train.loss.beta) == ("x2vlm", 0.3, 0.75)
    assert train.eval.rerank is not None
    assert (train.eval.rerank.student, train.eval.rerank.k, train.eval.rerank.combine) == ("self", k, "replace")
    assert (train.train.batch_size, train.train.learning_rate, train.train.epochs) == (40, 7.5e-6, 20)
    assert all(figure in " ".join(header(path.stem)) for figure in target.split())


@pytest.mark.parametrize(("data", "target"), [("coco", "439.6 452.6"), ("flickr30k", "514.8 527.1")])
def test_maxmatch_s_recipes_have_its_settings(data: str, target: str) -> None:
    path = RECIPES / f"maxmatch-{data}.yaml"
    train = load_parameters(TrainParameters, path)
    assert load_parameters(ExtractParameters, path).data.format == "precomp"
    assert (train.loss.recipe, train.loss.hinge.margin, train.train.batch_size, train.train.epochs) == (
        "maxmatch",
        0.1,
        128,
        50,
    )
    assert (train.student.sets.members, train.student.sets.rounds, train.student.sets.activation) == (4, 4, "expm1")
    assert all(figure in " ".join(header(path.stem)) for figure in target.split())
