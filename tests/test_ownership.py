"""Nothing that a command did not write is removed or overwritten: it stays, or the folder is refused with its name."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import content, small_scenes
from matplotlib import pyplot
from refusals import refused

from models.checkpoint import write_tensors
from pipeline.extract import extract
from pipeline.inspection.missing_matches import KINDS, write_list
from pipeline.inspection.missing_matches import claim_folder as claim_missing
from stores import ExtractParameters, ParameterError, Store, StoreError, TrainParameters
from stores.atomic import write_json
from stores.errors import RunFolderError
from stores.layout import Layout
from stores.ownership import is_signed, write_signed
from stores.parameters import Data, Extract, Student, Teachers, Train
from train.evaluation.folder import claim_folder as claim_eval
from train.fit.claim import replaces_another
from train.fit.curves import Curves
from train.run import run

TINY = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")


def persons_files(folder: Path, *places: str) -> dict[str, bytes]:
    """Put a file of a person's at each place in the folder, and return them all."""
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(f"mine: {place}")
    return {place: (folder / place).read_bytes() for place in places}


def held(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    return {place: (folder / place).read_bytes() for place in files if (folder / place).exists()}


@pytest.fixture
def finished(scenes_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(scenes_run, tmp_path / "run")


def other(folder: Path) -> dict[str, object]:
    """What run.json of another run would say."""
    return {**json.loads((folder / "run.json").read_text()), "versions": {}}


def test_overwriting_a_run_removes_what_it_wrote_and_nothing_else(finished: Path, scenes_store: Store) -> None:
    outside = finished.parent / "outside"
    kept = persons_files(outside, "last.safetensors", "infonce/README.md")
    mine = persons_files(
        finished,
        *(
            "notes.md",
            "analysis.ipynb",
            "mine/deep/a.txt",
            "infonce/notes.md",
            "plots/my.png",
            "epoch-best.safetensors",
        ),
        *("dvclive/plots/images/i.png", "tensorboard/mine/events.out.tfevents.1", "best.safetensors.tmp-20251126"),
    )
    (finished / "elsewhere").symlink_to(outside)
    (finished / "plots" / "elsewhere").symlink_to(outside)
    (finished / "last.safetensors.tmp-77").touch()
    before = (finished / "best.safetensors").read_bytes()
    train = Train(epochs=1, batch_size=16, device="cpu", precision="fp32", seed=1, compare=False)
    parameters = TrainParameters(train=train, student=Student(model="tiny_students:Weighing"))
    run(parameters, scenes_store, finished, overwrite=True)
    assert held(finished, mine) == mine
    assert held(outside, kept) == kept
    assert (finished / "elsewhere").is_symlink()
    assert (finished / "best.safetensors").read_bytes() != before
    assert not (finished / "last.safetensors.tmp-77").exists()
    assert [path.name for path in (finished / "infonce").iterdir()] == ["notes.md"]


def _draw(path: Path) -> None:
    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    figure.savefig(path)
    pyplot.close(figure)


CHANGES: dict[str, Callable[[Path], object]] = {
    "README.md": lambda path: path.write_text(path.read_text() + "My notes.\n"),
    "infonce/README.md": lambda path: path.write_text("My notes.\n" + path.read_text()),
    "report.html": lambda path: path.write_text("<p>mine</p>"),
    "epochs.csv": lambda path: path.write_text(path.read_text().replace("\n", ",remark\n")),
    "plots/curves.png": _draw,
    "metrics.json": lambda path: path.write_text('{"mine": 1}'),
    "student.safetensors": lambda path: path.write_bytes(b"mine"),
    "epoch-007.safetensors": lambda path: path.mkdir(),
    "last.safetensors": lambda path: path.rename(path.with_name("l")) and path.symlink_to("l"),
    "tensorboard": lambda path: path.symlink_to(path.parent),
}


@pytest.mark.parametrize("place", CHANGES)
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "resume"])
def test_a_person_s_file_in_the_place_of_the_run_s_own_is_refused(finished: Path, place: str, overwrite: bool) -> None:
    CHANGES[place](finished / place)
    before = content(finished)
    with refused(RunFolderError, problem="not as cusa-train wrote it", path=finished, where=place):
        replaces_another(finished, other(finished), overwrite)
    assert content(finished) == before


@pytest.mark.parametrize(
    "record",
    [None, '{"parameters": {}, "versions": {}}', "[1]", "not JSON"],
    ids=["absent", "other", "list", "not-json"],
)
def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path, record: str | None) -> None:
    mine = persons_files(tmp_path, ".git/config", "thesis.tex", "best.safetensors")
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    with refused(RunFolderError, problem="is not empty and holds no run of cusa-train", path=tmp_path):
        replaces_another(tmp_path, {}, True)
    assert held(tmp_path, mine) == mine


def test_a_page_that_is_changed_while_a_training_goes_on_stays(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "README.md"
    write_signed(page, "# one\n")
    write_signed(page, "# two\n")
    assert is_signed(page)
    page.write_text(page.read_text() + "mine\n")
    write_signed(page, "# three\n")
    assert page.read_text().startswith("# two")
    assert "Not written" in capsys.readouterr().err


def test_the_curves_of_others_stay(tmp_path: Path) -> None:
    mine = persons_files(tmp_path, "dvclive/plots/images/i.png", "dvclive/report.md", "dvclive/plots/metrics/my.tsv")
    for _ in range(2):
        with Curves(tmp_path, [], 1, tensorboard=False):
            pass
    assert held(tmp_path, mine) == mine


def tiny(**scenes: int) -> ExtractParameters:
    return replace(small_scenes(**scenes), teachers=TINY)


def test_a_store_keeps_what_a_person_put_into_it(tmp_path: Path) -> None:
    extract(tiny(), tmp_path / "store")
    extract(tiny(train=16, test=0), tmp_path / "fresh")
    store, features, indices = tmp_path / "store", "features/tiny_teachers-length", "indices/tiny_teachers-length"
    mine = persons_files(
        store,
        *(
            "notes.md",
            "sub/deep/x",
            "shards/notes.txt",
            "shards/sub/x",
            "shards/train-000077.tar",
            "shards/a-000001.json",
        ),
        *(f"{features}/my.h5", f"{features}/test-000077.h5", f"{features}/sub/x", f"{features}/my.h5.tmp-12"),
        *(f"{indices}/notes.txt", f"{indices}/dev.faiss", f"{indices}/sub/x", "notes.txt.tmp-123", "sub/a.tmp-1"),
    )
    for copied in ("shards/test-000000.tar", "shards/test-000000.json"):
        mine[copied.replace("test-0", "backup-0")] = (store / copied).read_bytes()
        shutil.copy(store / copied, store / copied.replace("test-0", "backup-0"))
    (store / "features" / "linked").symlink_to(tmp_path / "fresh" / features)
    for left in ("samples.arrow.tmp-12", "classes.arrow.tmp-12", f"{features}/classes.h5.tmp-12"):
        (store / left).touch()
    extract(tiny(train=16, test=0), store)
    assert held(store, mine) == mine
    (store / "features" / "linked").unlink()
    assert content(store).keys() == content(tmp_path / "fresh").keys() | mine.keys()


def test_a_remark_under_the_mark_of_a_store_stays(tmp_path: Path) -> None:
    extract(tiny(), tmp_path)
    mark = Layout(tmp_path).mark
    mark.write_text(mark.read_text() + "Ours since May. Ask Ada.\n")
    extract(tiny(), tmp_path)
    assert "Ask Ada" in mark.read_text()


def test_features_in_the_place_of_a_new_teacher_s_are_refused(tmp_path: Path) -> None:
    extract(tiny(), tmp_path)
    mine = persons_files(tmp_path, "features/tiny_teachers-no_e/train-000001.h5")
    changed = replace(tiny(), teachers=replace(TINY, text="tiny_teachers:no_e"))
    with pytest.raises(StoreError, match=r"no_e/train-000001\.h5: the store's own file belongs there"):
        extract(changed, tmp_path)
    assert held(tmp_path, mine) == mine


def test_a_tar_or_a_truth_that_no_record_knows_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    pictures = "".join(f"{number}.png,picture {number}\n" for number in range(4))
    table.write_text(f"image,caption\n{pictures}")
    for number in range(6):
        pyplot.imsave(tmp_path / f"{number}.png", torch.full((9, 9, 3), number / 6).numpy())
    given = ExtractParameters(data=Data(source=str(table)), teachers=TINY, extract=Extract(shard_size=4, workers=0))
    store = tmp_path / "store"
    extract(given, store)
    for table_of_ours in ("relevance.arrow", "classes.arrow"):
        mine = persons_files(store, table_of_ours)
        with pytest.raises(StoreError, match=rf"{table_of_ours}: the store's own file belongs there"):
            extract(given, store)
        assert held(store, mine) == mine
        (store / table_of_ours).unlink()
    mine = persons_files(store, "shards/train-000001.tar")
    table.write_text(f"image,caption\n{pictures}4.png,four\n5.png,five\n")
    with pytest.raises(StoreError, match=r"train-000001\.tar: the store's own file belongs there"):
        extract(given, store)
    assert held(store, mine) == mine


def test_pages_that_a_person_changed_are_refused_by_their_commands(tmp_path: Path, scenes_store: Store) -> None:
    listed, measured = tmp_path / "missing", tmp_path / "eval"
    from stores.missing import LISTED

    write_list(listed, LISTED.empty_table(), None)
    write_signed(listed / "missing.html", "<p>ours</p>\n")
    write_json(measured / "figures.json", {"format": 1, "results": []})
    write_signed(measured / "report.html", "<p>ours</p>\n")
    claim_missing(scenes_store, "missing", "train", listed, KINDS, "a list")
    claim_eval(measured, scenes_store.root)
    for page in (listed / "missing.html", measured / "report.html"):
        page.write_text(page.read_text() + "<p>mine</p>\n")
    with refused(StoreError, path=listed, found=["missing.html"]):
        claim_missing(scenes_store, "missing", "train", listed, KINDS, "a list")
    with refused(ParameterError, where="--out", path=measured, found="report.html"):
        claim_eval(measured, scenes_store.root)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=["022", "002", "077"])
def test_every_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        extract(tiny(train=16), tmp_path / "store")
        write_tensors(tmp_path / "run" / "best.safetensors", {"a": torch.zeros(3)}, {})
        with Curves(tmp_path / "run", [], 1, tensorboard=True):
            pass
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
