"""Parameters: strict, with errors that name the nearest key; the file, the defaults and dvc.yaml agree."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stores import ExtractParameters, ParameterError, TrainParameters, load_parameters
from stores.parameters import SECTIONS

CHECKOUT = Path(__file__).resolve().parents[1]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_the_file_at_the_top_says_what_the_defaults_say() -> None:
    for kind in (ExtractParameters, TrainParameters):
        assert load_parameters(kind, CHECKOUT / "params.yaml") == kind()
    values = YAML(typ="safe").load(CHECKOUT / "params.yaml")
    assert list(values) == list(SECTIONS)
    for section, kind in SECTIONS.items():
        assert list(values[section]) == [field.name for field in fields(kind)]


def test_dvc_stages_list_the_sections_that_their_commands_read() -> None:
    stages = YAML(typ="safe").load(CHECKOUT / "dvc.yaml")["stages"]
    for stage, kind in (("extract", ExtractParameters), ("train", TrainParameters)):
        assert stages[stage]["params"] == [field.name for field in fields(kind)]
    assert list(stages) == ["extract", "train"]


@pytest.mark.parametrize(
    ("text", "where", "found", "expected", "advice"),
    [
        ("loss: {alpa: 1}", "loss.alpa", None, None, "Did you mean 'alpha'?"),
        (
            "student: {heads: {image: {feature: x}}}",
            "student.heads.image.feature",
            None,
            None,
            "Did you mean 'features'?",
        ),
        ("student: {heads: 1}", "student.heads", 1, "a mapping", ""),
        ("los: {alpha: 1}", "los", None, None, "Did you mean 'loss'?"),
        ("loss: {alpha: -1}", "loss.alpha", -1, "greater than or equal to 0", ""),
        ("loss: {alpha: .nan}", "loss.alpha", pytest.approx(math.nan, nan_ok=True), "a finite number", ""),
        ("loss: {mix: all}", "loss.mix", "all", "'each', 'add' or 'dot'", ""),
        ("train: {epochs: 2.5}", "train.epochs", 2.5, "a valid integer", ""),
        ("train: {compare: 1}", "train.compare", 1, "a valid boolean", ""),
        ("train: [1]", "", {"train": [1]}, f"the sections {', '.join(SECTIONS)}, each a mapping", ""),
        ("train: {epochs: 1", "", None, "YAML", ""),
    ],
    ids=[
        "key",
        "key-in-mapping",
        "no-mapping",
        "section",
        "negative",
        "nan",
        "choice",
        "fraction",
        "number-for-flag",
        "list",
        "not-yaml",
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path, text: str, where: str, found: object, expected: str | None, advice: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ParameterError) as caught:
        load_parameters(TrainParameters, path)
    error = caught.value
    assert (error.path, error.where, error.found, error.expected, error.advice) == (
        path,
        where,
        found,
        expected,
        advice,
    )


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {alpa: 1}\ntrain: {epochs: 0}")
    with pytest.raises(ParameterError) as caught:
        load_parameters(TrainParameters, path)
    assert caught.value.where == "loss.alpa"
    assert caught.value.format_message().splitlines()[1:] == [
        f"{path}, train.epochs: found 0, expected greater than 0."
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        load_parameters(TrainParameters, tmp_path / "nowhere.yaml")
    assert caught.value.path == tmp_path / "nowhere.yaml"


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    parameters = load_parameters(TrainParameters, written(tmp_path, "train: {learning_rate: 1e-4}"))
    assert parameters.train.learning_rate == 1e-4


def test_overrides_win_over_flags_and_flags_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {alpha: 0.2, beta: 0.2, teacher_temperature: 0.2}")
    parameters = load_parameters(TrainParameters, path, {"loss.beta": 0.3, "student.model": None}, ["loss.alpha=0.4"])
    assert (parameters.loss.alpha, parameters.loss.beta, parameters.loss.teacher_temperature) == (0.4, 0.3, 0.2)


def test_nested_overrides_keep_their_neighbours(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {scenes: {train: 5}}")
    parameters = load_parameters(ExtractParameters, path, overrides=["data.scenes.val=7"])
    assert (parameters.data.scenes.train, parameters.data.scenes.val) == (5, 7)


@pytest.mark.parametrize(
    ("override", "where", "found"),
    [("alpha=1", "-S", "alpha=1"), ("loss.alpha", "-S", "loss.alpha"), ("loss.alpha=[1", "-S loss.alpha", "[1")],
    ids=["no-section", "no-value", "no-yaml"],
)
def test_a_malformed_override_is_explained(tmp_path: Path, override: str, where: str, found: str) -> None:
    with pytest.raises(ParameterError) as caught:
        load_parameters(TrainParameters, written(tmp_path, ""), overrides=[override])
    assert (caught.value.where, caught.value.found) == (where, found)
