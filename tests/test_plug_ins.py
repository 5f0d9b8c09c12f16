"""A plug-in's name is the one typed, whatever it calls itself: from the store's folder to what evaluation looks for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import tiny_teachers
from click.testing import CliRunner, Result
from conftest import content

import pipeline.cli
import train.cli
import train.eval_cli
from models.teachers import load_teacher
from pipeline.inspection.cli import main as store_main
from stores import Store, TeacherError

SCENES = [f"-Sdata.scenes.{name}={value}" for name, value in {"train": 32, "val": 8, "test": 8, "pixels": 32}.items()]
IMAGE, TEXT = "tiny_teachers:unlike_its_name", "tiny_teachers:unlike_any_name"
TEACHERS = ["--image-teacher", IMAGE, "--text-teacher", TEXT]
MAIN = {"extract": pipeline.cli.main, "store": store_main, "train": train.cli.main, "eval": train.eval_cli.main}


def cusa(command: str, *arguments: str | Path) -> Result:
    result = CliRunner().invoke(MAIN[command], [*map(str, arguments)])
    assert result.exit_code == 0, result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made with two plug-ins that call themselves something else; tests must not change it."""
    path = tmp_path_factory.mktemp("plugged") / "store"
    cusa("extract", "--store", path, *SCENES, *TEACHERS, "-Sextract.workers=0")
    return path


def test_a_store_knows_them_as_typed(store: Path) -> None:
    found = json.loads(cusa("store", "info", store, "--json").stdout)
    assert {entry["features"]: entry["from"] for entry in found["features"]} == {
        "tiny_teachers-unlike_its_name": IMAGE,
        "tiny_teachers-unlike_any_name": TEXT,
    }
    assert {path.name for path in (store / "features").iterdir()} == set(Store.open(store).manifest.teachers)
    before = content(store)
    assert "encoded again: tiny_teachers-unlike_any_name" in cusa("store", "verify", store, "--deep").output
    cusa("store", "neighbours", store, "--text", "a red circle")
    cusa("store", "retry", store)
    assert content(store) == before


def test_training_and_evaluation_find_them(store: Path, tmp_path: Path) -> None:
    settings = ["-Strain.epochs=1", "-Strain.batch_size=16", "-Strain.compare=false", "-Strain.device=cpu"]
    cusa(
        "train",
        "--store",
        store,
        "--run",
        tmp_path / "run",
        *TEACHERS,
        "--student",
        "tiny_students:Weighing",
        *settings,
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]["teachers"]["text"] == TEXT
    # Texts are shown being encoded where their features are not taken from the store.
    for teacher, encoded in ((TEXT, False), ("tiny_teachers:length", True)):
        measured = cusa("eval", "--model", teacher, "--store", store, "--task", "sts", "--out", tmp_path / "eval")
        assert ("test, texts" in measured.stderr) == encoded, measured.stderr


def test_one_that_calls_itself_like_ours_leaves_ours_alone(store: Path, tmp_path: Path) -> None:
    both = tmp_path / "store"
    for image in ("hog-color", IMAGE):
        cusa(
            "extract", "--store", both, *SCENES, "--image-teacher", image, "--text-teacher", TEXT, "-Sextract.workers=0"
        )
    kept = Store.open(both).manifest.teachers
    assert list(kept) == ["hog-color", "tiny_teachers-unlike_any_name", "tiny_teachers-unlike_its_name"]
    assert kept["hog-color"].dim == load_teacher("hog-color").dim != kept["tiny_teachers-unlike_its_name"].dim


@pytest.mark.parametrize("spec", ["hog-color:large", "minilm:v2"])
def test_a_name_that_would_not_be_heeded_is_refused(spec: str) -> None:
    with pytest.raises(TeacherError, match=spec):
        load_teacher(spec)


class Stubborn(tiny_teachers.MeanColour):
    """A teacher whose name cannot be changed."""

    spec = property(lambda self: "mine")  # type: ignore[assignment]


def test_a_plug_in_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_teachers, "stubborn", lambda weights, device, precision: object.__new__(Stubborn), False)
    with pytest.raises(TeacherError, match=r"tiny_teachers:stubborn: `spec` cannot be set .* a plain attribute"):
        load_teacher("tiny_teachers:stubborn")
    monkeypatch.setattr(tiny_teachers, "bare", lambda device: None, False)
    with pytest.raises(TeacherError, match=r"must take the keywords weights, device, precision: .*weights"):
        load_teacher("tiny_teachers:bare")


@pytest.fixture
def brought(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as strangers give it: a store, and in it the code that its records name, which would leave a file."""
    folder = tmp_path / f"given_{uuid4().hex}"  # a module of its own: what was imported stays
    shutil.copytree(store, folder / "store")
    code = f"import pathlib\n\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n\n\ndef run(**_):\n    pass\n"
    for place in (folder, folder / "store"):
        (place / "brought.py").write_text(code)
    (folder / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def _record(folder: Path, spec: str) -> None:
    manifest = folder / "store" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(TEXT, spec))


@pytest.mark.parametrize(
    "spec", ["{}.brought:run", "{}.store.brought:run", "os:system"], ids=["beside", "inside", "python"]
)
@pytest.mark.parametrize(
    "command",
    [["store", "neighbours", "--text", "a red square"], ["extract", "--teacher", "hog-color"]],
    ids=["neighbours", "extract"],
)
def test_code_that_came_with_a_store_is_never_run(brought: Path, spec: str, command: list[str]) -> None:
    _record(brought, spec.format(brought.name))
    name, *arguments = command
    place = [str(brought / "store")] if name == "store" else []
    flags = [] if name == "store" else ["--store", str(brought / "store")]
    result = CliRunner().invoke(MAIN[name], [*arguments[:1], *place, *arguments[1:], *flags])
    assert result.exit_code == 2
    assert "never run from there" in result.stderr
    assert not (brought.parent / "ran").exists()


def test_a_person_names_code_wherever_it_lies(brought: Path) -> None:
    with pytest.raises(TeacherError, match="returned a NoneType"):
        load_teacher(f"{brought.name}.brought:run")
    assert (brought.parent / "ran").exists()
