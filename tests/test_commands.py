"""The commands as a person types them: each mistake is one message and exit code 2, never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import forked
import pytest
from click.testing import CliRunner
from conftest import content

import pipeline.cli
import pipeline.inspection.cli
import train.cli
from stores import Store
from stores.commands import heard_interrupts

CHECKOUT = Path(__file__).resolve().parents[1]
SMALL = ["-S", "data.scenes={train: 24, val: 4, test: 8}", "-S", "extract.shard_size=8", "-S", "extract.workers=0"]

CPU = ["-S", "train.device=cpu", "-S", "train.precision=fp32"]


def command(module: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as the console script does."""
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from {module} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )


def test_a_store_and_a_run_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: {epochs: 1, batch_size: 8, device: cpu, compare: false}\n")
    made = command("pipeline.cli", "--store", "store", *SMALL, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "24 samples, 120 captions, 3 shards" in made.stdout
    assert "hog-color: 864-d" in made.stdout
    again, _ = forked.start("pipeline.cli", "--store", "store", *SMALL, cwd=tmp_path).communicate()
    assert "nothing to do" in " ".join(again.split())
    trained = command("train.cli", "--store", "store", "--run", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "RSUM" in trained.stdout
    assert "Plots: run/plots/curves.png" in trained.stdout
    shown, _ = forked.start("train.cli", "--show", "--run", "run", cwd=tmp_path).communicate()
    assert shown == trained.stdout
    flags = ["--store", "store", "--run", "run", "-S", "loss.alpha=0.3"]
    other = forked.start("train.cli", *flags, cwd=tmp_path)
    _, errors = other.communicate()
    assert other.returncode == 2
    assert "run, loss.alpha (1.0 → 0.3): holds another run" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "absent.json"], "The source absent.json cannot be read: no such file"),
        (["--source", "train=a.json", "--source", "b.json"], "expected one place, or SPLIT=PLACE once for each split"),
        (["--image-teacher", "dino"], "No teacher is called 'dino'"),
        (["--image-teacher", "minilm"], "teachers.image is minilm, which is a teacher of texts"),
        (["--image-teacher", "unicom:ViT-B/32", "--image-weights", "absent.pt"], "absent.pt of unicom:ViT-B/32 do not"),
        (["--images", "absent"], None),
        (["--params", "absent.yaml"], "absent.yaml: cannot be read"),
        (["-S", "extract.shard_sise=3"], "Did you mean 'shard_size'?"),
        (["-S", "extract.device=gpu7"], "device: cannot be used"),
        (["--colour"], "No such option"),
        (["--store", "taken"], "The store taken cannot be written"),
    ],
    ids=[
        "absent-source",
        "split-without-a-name",
        "unknown-teacher",
        "teacher-of-texts",
        "absent-weights",
        "scenes-need-no-folder",
        "absent-parameters",
        "unknown-key",
        "unknown-device",
        "unknown-option",
        "store-is-a-file",
    ],
)
def test_mistakes_in_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    result = CliRunner().invoke(pipeline.cli.main, ["--store", "store", *SMALL, *arguments])
    if message is None:
        assert result.exit_code == 0, "scenes need no image folder"
        return
    assert result.exit_code == 2
    assert message in result.output
    assert isinstance(result.exception, SystemExit), "a message, not a traceback"
    assert not (tmp_path / "store").exists(), "nothing half-made is left"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "absent"], "absent is not a finished store"),
        (["--show", "--run", "absent"], "absent/metrics.json: expected the figures of a finished run"),
        (["--student", "open-clip:none"], "open_clip knows no model 'none'"),
        (
            ["--image-teacher", "unicom:ViT-B/32"],
            "has no features 'unicom-ViT-B-32'; it has hog-color, minilm",
        ),
        (["-S", "train.batch_size=5000"], "fewer than one batch of 5000"),
        (["-S", "eval.test=dev"], "eval.test: found 'dev', expected a split of"),
        (["-S", "loss.tau=1"], "loss.tau: unknown parameter"),
        (["--run", "taken"], "taken: is a file. Choose another folder with --run"),
    ],
    ids=[
        "absent-store",
        "absent-run",
        "unknown-student",
        "teacher-not-extracted",
        "batch-too-large",
        "unknown-split",
        "unknown-key",
        "run-is-a-file",
    ],
)
def test_mistakes_in_training(
    scenes_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    result = CliRunner().invoke(train.cli.main, ["--store", str(scenes_store.root), "--run", "run", *CPU, *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit), "a message, not a traceback"


def test_an_interrupt_ends_with_a_word_and_the_next_run_goes_on(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from pipeline.cli import main; main()"
    small = ["-S", "data.scenes={train: 96, val: 4, test: 8}", "-S", "extract.shard_size=8", "-S", "extract.workers=2"]
    arguments = [sys.executable, "-c", code, "--store", "store", *small]
    started = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and so whatever runs the suite there, ignore the interrupt and pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "store" / "features" / "hog-color"
    deadline = time.monotonic() + 300
    while not list(folder.glob("*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 130
    assert "Stopped. Run the same command again to go on" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert not list((tmp_path / "store").rglob("*.tmp-*"))
    assert not (tmp_path / "store" / "manifest.json").exists()
    finished = forked.start("pipeline.cli", "--store", "store", *small, cwd=tmp_path)
    _, errors = finished.communicate()
    assert finished.returncode == 0, errors
    assert len(Store.open(tmp_path / "store").samples) == 108


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "loss.recipe=maxmatch"], "the student's items have no parts"),
        (["-S", "eval.rerank={student: nowhere}"], "No student is called 'nowhere'"),
        (["-S", "train.clean_at_least=0.5"], "train.clean: expected a clean column to leave pairs out by"),
        (["-S", "train.clean=absent.arrow", "-S", "train.clean_at_least=0.5"], "absent.arrow: cannot be read"),
        (["-S", "train.clean=clean.arrow"], "train.clean: found 'clean.arrow', expected null, or one of"),
        (["-S", "loss.original=tripplet"], "loss.original: found 'tripplet', expected infonce, hinge, pcmc, pcmr, or"),
        (
            ["-S", "loss.original=pcmc", "-S", "loss.coordination.weights={imag/text: 2.0}"],
            "loss.coordination.weights: found 'imag/text', expected pairs of two of image, text, each once",
        ),
        (["-S", "loss.extra={json:dumps: 1}"], "'json:dumps' is called without arguments, and cannot be"),
        (["-S", "student.freeze=[audio]"], "student.freeze: found 'audio', expected towers of open-clip:small-clip"),
        (["--student", "open-clip:ViT-B-99"], "Nearest: ViT-B"),
    ],
    ids=[
        "loss-of-sets",
        "reranker",
        "no-column",
        "absent-column",
        "unread-column",
        "loss",
        "pair",
        "term-with-arguments",
        "tower",
        "near-name",
    ],
)
def test_a_mistake_costs_nobody_an_earlier_run(
    scenes_store: Store, small_run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    before = content(tmp_path / "run")
    place = ["--store", str(scenes_store.root), "--run", str(tmp_path / "run"), "--overwrite"]
    result = CliRunner().invoke(train.cli.main, [*place, *CPU, "-S", "train.batch_size=16", *arguments])
    assert (result.exit_code, message in " ".join(result.output.split())) == (2, True), result.output
    assert content(tmp_path / "run") == before


def test_a_fault_of_the_command_line_is_not_said_of_the_parameters_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: {batch_size: 16}\n")
    arguments = ["--params", str(tmp_path / "own.yaml"), "--store", str(tmp_path / "store")]
    of_file = CliRunner().invoke(train.cli.main, [*arguments, "-S", "loss.alpha=1"])
    assert "own.yaml" not in of_file.output
    for wrong in ("los.alpha=1", "loss.alpha.x=1", "eval.rerank.foo=1"):
        fault = CliRunner().invoke(train.cli.main, [*arguments, "-S", wrong])
        assert (fault.exit_code, "own.yaml" in fault.output) == (2, False), fault.output
    by_hand = CliRunner().invoke(train.cli.main, [*arguments, "-S", "train.batch_size=1"])
    assert by_hand.output.startswith("Error: train.batch_size: found 1, expected")
    (tmp_path / "own.yaml").write_text("train: {batch_size: 1}\n")
    assert "own.yaml, train.batch_size: found 1" in CliRunner().invoke(train.cli.main, arguments).output


def test_an_interrupt_that_python_drops_comes_again() -> None:
    class Anything:
        pass

    going = Anything()
    callback = weakref.ref(going, lambda _: signal.raise_signal(signal.SIGINT))
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), heard_interrupts():
            del going
            assert callback() is None
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_an_interrupt_while_libraries_load_ends_as_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.inspection.cli, "resumable", interrupted)
    result = CliRunner().invoke(pipeline.inspection.cli.main, ["verify", str(tmp_path)])
    assert (result.exit_code, result.output) == (130, "Stopped.\n")
