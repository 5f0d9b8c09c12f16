"""What a training shows: the live view in a terminal and in a log, the curves, and the page of a run's folder."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from stores import ParameterError, TrainingError, TrainParameters
from stores.parameters import Loss, Student
from train.fit import environment, live
from train.fit.curves import Curves
from train.fit.epoch import Epoch, StepMetrics, write_epochs
from train.fit.live import WAIT_MARKED, LiveView
from train.fit.run_folder import Facts, describe
from train.report.training_curves import draw_curves

TEMPERATURES = {"InfoNCE": 0.05, "CSA": 0.45, "USA image": 0.46, "USA text": 0.47}
NAN = float("nan")


def metrics(step: int, value: float = 1.0, wait: float = 0.02) -> StepMetrics:
    loss = {"InfoNCE": value, "CSA": value / 10, "USA": value / 1000, "total": 1.2 * value}
    return StepMetrics(
        step=step, loss=loss, temperatures=TEMPERATURES, learning_rate=1e-3, samples_per_second=2345.6, wait=wait
    )


def epoch(number: int, rsum: float = 300.0, value: float = 1.0, wait: float = 0.02) -> Epoch:
    return Epoch(
        epoch=number, validation_rsum=rsum, **{k: v for k, v in vars(metrics(0, value, wait)).items() if k != "step"}
    )


def show(view: LiveView, epochs: Sequence[Epoch], value: float = 1.0, wait: float = 0.02) -> None:
    for figures in epochs:
        view.begin(figures.epoch, 0)
        view.step(metrics(10, value, wait))
        view.step(metrics(20, value, wait))
        view.measuring()
        view.end(figures)


def test_a_log_file_gets_one_plain_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a_title_" * 20
    with LiveView(long, 3, 20, 64) as view:
        show(view, [epoch(0, 300.0), epoch(1, 290.0), epoch(2, 310.0, wait=0.5)])
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.removeprefix(long) for line in lines] == [
        " 1/3 · RSUM 300.0 ↑ · InfoNCE 1.000 CSA 0.100 USA 1.0e-03 · 2,346/s",
        " 2/3 · RSUM 290.0 · InfoNCE 1.000 CSA 0.100 USA 1.0e-03 · 2,346/s",
        " 3/3 · RSUM 310.0 ↑ · InfoNCE 1.000 CSA 0.100 USA 1.0e-03 · 2,346/s · wait 50%",
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", err)


def test_a_resumed_training_knows_the_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView("t", 9, 20, 64, validation_best=305.0) as view:
        show(view, [epoch(5, 300.0), epoch(6, 306.0)])
    assert ["↑" in line for line in capsys.readouterr().err.splitlines()] == [False, True]


def screen(
    monkeypatch: pytest.MonkeyPatch, width: int, latest: StepMetrics | None, best: float | None = None
) -> list[str]:
    """What the view looks like in a terminal of so many columns, in an epoch that is half over."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(live, "console", console)
    view = LiveView("soft_labels", 8, 20, 64, best)
    view.begin(2, 5)
    if latest:
        view.step(latest)
    console.print(view._view())
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_view_shows_every_figure_within_its_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = screen(monkeypatch, width, metrics(10, wait=0.34), best=421.34)
    assert max(map(len, lines)) <= width
    assert len(lines) == 7, "the bar, a heading, four rows of figures and a hint"
    assert re.search(r"soft_labels · epoch 3/8 ━+[╸╺ ━]* 640/1,280 pairs 0:00:01 left", lines[0])
    for name, value in {
        "InfoNCE": "1.000",
        "CSA": "0.100",
        "USA": "1.0e-03",
        "total": "1.200",
        **{name: f"{tau:.3f}" for name, tau in TEMPERATURES.items()},
        "pairs/s": "2,346",
        "input wait": "34%",
        "learning rate": "1.00e-03",
        "best RSUM": "421.3",
    }.items():
        assert re.search(rf"{name} +{re.escape(value)}", "\n".join(lines)), name
    assert "raise train.workers" in lines[-1]
    assert "raise train.workers" not in "".join(screen(monkeypatch, width, metrics(10)))


def test_the_view_of_an_epoch_taken_up_again_starts_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = screen(monkeypatch, 100, None)
    assert "320/1,280 pairs" in line


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("value", [NAN, math.inf, 0.0, 1e9])
def test_odd_figures_and_narrow_terminals_crash_nothing(
    monkeypatch: pytest.MonkeyPatch, width: int, value: float
) -> None:
    odd = replace(metrics(10, value, value), samples_per_second=value, learning_rate=value)
    lines = screen(monkeypatch, width, odd, best=value)
    assert max(map(len, lines)) <= width
    hint = lines.pop() if value > WAIT_MARKED else "The model waits"
    assert hint.startswith("The model waits")
    assert len(lines) == (6 if width == 80 else 16), "the bar; side by side, or one below the other, all the figures"
    shown = {NAN: "nan", math.inf: "inf", 0.0: "0.000", 1e9: "1000000000."}[value]
    assert shown in lines[2]


def test_losses_are_set_against_the_epoch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(live, "console", console)
    view = LiveView("t", 8, 20, 64)
    show(view, [epoch(0, value=2.0)])
    view.step(metrics(10, 1.5))
    console.print(view._view())
    assert re.search(r"InfoNCE +1\.500 +-0\.500", text.getvalue())


DEMO = """
import time
from train.fit.epoch import Epoch, StepMetrics
from train.fit.live import LiveView
figures = dict(loss={{"InfoNCE": 1.0}}, temperatures={{}}, learning_rate=1e-3, samples_per_second=1.0, wait=0.0)
with LiveView("t", 3, 20, 64) as view:
    for number in range(3):
        view.begin(number, 0)
        view.step(StepMetrics(step=10, **figures))
        time.sleep({pause})
        view.end(Epoch(epoch=number, validation_rsum=300.0, **figures))
    print("all three", flush=True)
    {last}
"""


def in_a_terminal(code: str, interrupt: bool = False) -> tuple[str, int]:
    """Run Python code in a pseudo-terminal of 80 columns; return what it wrote there, and its exit code."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    root = Path(__file__).resolve().parents[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=root,
        env=kept | {"TERM": "xterm-256color", "PYTHONPATH": str(root)},
        # A shell's background jobs ignore Ctrl-C, and hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(child)
    written = b""
    try:
        while True:
            written += os.read(parent, 65536)
            if interrupt and b"all three" in written:
                interrupt = False
                time.sleep(0.1)
                process.send_signal(signal.SIGINT)
    except OSError:  # as Linux says that the other end is closed
        pass
    os.close(parent)
    return written.decode(), process.wait(timeout=300)


def test_a_terminal_keeps_the_epochs_lines_and_its_cursor() -> None:
    written, code = in_a_terminal(DEMO.format(pause=0.3, last="pass"))
    assert code == 0, written
    assert "InfoNCE" in written
    assert "━" in written
    assert len(re.findall(r"t \d/3 · ", written)) == 3
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"
    assert written.rindex("\x1b[2K") > written.rindex("━"), "the view is wiped away at the end"


def test_ctrl_c_leaves_the_terminal_in_order() -> None:
    written, code = in_a_terminal(DEMO.format(pause=0.01, last="time.sleep(30)"), interrupt=True)
    assert code != 0
    assert "KeyboardInterrupt" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "dvclive/plots/metrics" / f"{name}.tsv").open() as file:
        return [(int(step), float(value)) for step, value in list(csv.reader(file, delimiter="\t"))[1:]]


def test_curves_agree_with_the_history_of_a_run_that_goes_on(tmp_path: Path) -> None:
    with Curves(tmp_path, [], 20, tensorboard=False) as curves:
        curves.step(0, metrics(10))
        curves.epoch(epoch(0, 300.0))
        curves.epoch(epoch(1, 999.0))
    for _ in range(2):
        # Epoch 1 was logged and not saved, epochs 1 and 2 of another attempt saved and not logged.
        with Curves(tmp_path, [epoch(0, 300.0), epoch(1, 310.0), epoch(2, 320.0)], 20, tensorboard=False) as curves:
            curves.epoch(epoch(3, NAN))
    found = points(tmp_path, "validation/RSUM")
    assert found[:3] == [(0, 300.0), (1, 310.0), (2, 320.0)]
    assert len(found) == 4
    for name in ("loss/CSA", "loss/total", "temperature/USA text", "learning_rate", "samples_per_second", "wait"):
        assert len(points(tmp_path, name)) == 4
    assert not (tmp_path / "tensorboard").exists()


def test_curves_end_though_another_training_took_their_common_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two trainings of one DVC repository end at the same moment."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    remove, taken = os.remove, []

    def remove_after_another(path: str) -> None:
        taken.append(Path(path).name)
        remove(path)
        remove(path)

    with monkeypatch.context() as patched, Curves(tmp_path / "run", [], 20, tensorboard=False) as curves:
        curves.epoch(epoch(0, 300.0))
        patched.setattr("dvclive.vscode.os.remove", remove_after_another)
    assert taken[-1] == "DVCLIVE_STEP_COMPLETED"
    assert points(tmp_path / "run", "validation/RSUM") == [(0, 300.0)]


def test_tensorboard_shows_each_step_once_after_a_run_goes_on(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def scalars(name: str, tag: str) -> list[tuple[int, float]]:
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / name))
        events.Reload()
        return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]

    with Curves(tmp_path, [], 20, tensorboard=True) as curves:
        curves.step(0, metrics(10, 0.1))
        curves.step(0, metrics(20, 0.2))
        curves.epoch(epoch(0, 300.0))
        curves.step(1, metrics(10, 0.3))
        curves.step(1, metrics(20, 0.4))
        assert scalars("steps", "loss/InfoNCE")[-1] == (40, 0.4), "a killed run loses no point"
        curves.epoch(epoch(1, 999.0))
    # The checkpoint that is gone on from was made after the tenth step of epoch 1.
    with Curves(tmp_path, [epoch(0, 300.0)], 20, tensorboard=True, first_step=10) as curves:
        assert scalars("steps", "loss/InfoNCE") == [(10, 0.1), (20, 0.2), (30, 0.3)]
        assert scalars("epochs", "validation/RSUM") == [(20, 300.0)]
        curves.step(1, metrics(20, 0.5))
        curves.epoch(epoch(1, 310.0))
    assert scalars("steps", "loss/InfoNCE") == [(10, 0.1), (20, 0.2), (30, 0.3), (40, 0.5)]
    assert scalars("epochs", "validation/RSUM") == [(20, 300.0), (40, 310.0)]
    for tag in ("temperature/InfoNCE", "learning_rate", "samples_per_second", "wait"):
        assert len(scalars("steps", tag)) == 4


def test_tensorboard_that_is_not_installed_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ParameterError, match=r"not installed.*pip install -c constraints.txt -e '\.\[tensorboard\]'"):
        Curves(tmp_path, [], 20, tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_a_repository_that_dvclive_cannot_use_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"dvclive cannot work.*Make a first commit"):
        Curves(tmp_path / "run", [], 20, tensorboard=False)


def git(folder: Path, *arguments: str) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True)


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert environment.commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert environment.commit(tmp_path) is None
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    found = environment.commit(tmp_path)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{40}", found["id"])
    assert found["changed"] is False
    (tmp_path / "code.py").write_text("2")
    assert environment.commit(tmp_path) == {"id": found["id"], "changed": True}


def test_each_start_is_recorded_and_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{Path.home()}/.venv/bin/cusa-train", "-S", "loss.alpha=1", "--run", "a b"])
    monkeypatch.setenv("A_TOKEN", "s3cr3t-value")
    path = tmp_path / "environment.json"
    path.write_text("{damaged")
    for processes in (1, 2):
        environment.record_start(tmp_path, "cpu", "bf16", processes)
    first, second = json.loads(path.read_text())["starts"]
    assert (first["processes"], second["processes"]) == (1, 2)
    assert first["command"] == "cusa-train -S loss.alpha=1 --run 'a b'"
    assert first["packages"]["torch"]
    assert first["packages"].keys() >= {"accelerate", "open-clip-torch", "timm", "numpy"}
    assert first["cpu"]
    named = {"started_at", "command", "commit", "device", "precision", "processes"}
    assert first.keys() == named | {"gpus", "cpu", "cores", "platform", "python", "packages"}
    for secret in ("s3cr3t-value", f"{Path.home()}/"):
        assert secret not in path.read_text()


def facts(**changes: Any) -> Facts:
    plain: dict[str, Any] = {
        "title": "soft_labels",
        "parameters": TrainParameters(),
        "store": Path("artifacts/store"),
        "fingerprint": "0123456789abcdef",
        "data": "960 pairs an epoch",
        "device": "cpu",
        "precision": "fp32",
    }
    return Facts(**(plain | {"processes": 1} | changes))


MEASURED = {
    "image_to_text": {"R@1": 51.0, "R@5": 81.0, "R@10": 91.0},
    "text_to_image": {"R@1": 52.0, "R@5": 82.0, "R@10": 92.0},
    "RSUM": 449.0,
}


def test_the_page_of_a_run_says_what_it_is_and_how_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    describe(folder, facts(), [])
    assert "No epoch is finished yet." in (folder / "README.md").read_text()
    (folder / "best.safetensors").touch()
    (folder / "epoch-2.safetensors").touch()
    parameters = replace(TrainParameters(), loss=Loss(alpha=0.1, beta=0.0, soft_top_k=32))
    history = [epoch(0, NAN), epoch(1, 310.0), epoch(2, 305.0)]
    describe(folder, facts(parameters=parameters, processes=3), history, MEASURED)
    page = (folder / "README.md").read_text()
    for said in (
        "a training of open-clip:small-clip",
        "| teachers | hog-color for images, minilm for texts |",
        "| store | artifacts/store, data fingerprint 0123456789ab |",
        "| loss | InfoNCE + 0.1 · CSA, soft labels at τ_P = 0.1, each row's nearest 32 |",
        "| machine | cpu, fp32, 3 processes |",
        "Epoch 3 of 8 is finished. The best is epoch 2, with RSUM 310.0 on the split `val`.",
        "| 2 (best) | 1 | 0.1 | 0.001 | 1.2 | 310.0 | 2,346 | 2% |",
        "**RSUM 449.0**",
        "| text → image | 52.0 | 82.0 | 92.0 |",
        "`best.safetensors`",
        "`epoch-*.safetensors`",
        "torchrun --nproc-per-node 3 --no-python -- ",
        f"dvc plots show '{folder}/dvclive/plots/metrics'",
    ):
        assert said in page, said
    for absent in ("last.safetensors", "tensorboard", "Loading the student", "mixed in"):
        assert absent not in page


def test_the_page_of_a_training_for_comparison_points_upwards(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    describe(tmp_path / "infonce", facts(parameters=replace(TrainParameters(), loss=Loss(alpha=0, beta=0))), [epoch(0)])
    page = (tmp_path / "infonce" / "README.md").read_text()
    assert "| loss | InfoNCE |" in page
    assert "| 1 (first, best, last) |" in page
    assert "lie one folder up" in page


def test_the_page_s_own_words_load_the_student(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from models.open_clip_student import OpenClipStudent

    student = OpenClipStudent("small-clip", None)
    save_file(
        {name: value.contiguous() for name, value in student.model.state_dict().items()},
        tmp_path / "student.safetensors",
    )
    describe(tmp_path, facts(), [epoch(0)])
    page = (tmp_path / "README.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    tokens = student.tokenizer(["a red circle"])
    torch.testing.assert_close(names["model"].eval().encode_text(tokens), student.eval().encode_text(tokens))
    parameters = replace(TrainParameters(), student=Student(model="mine:student"))
    describe(tmp_path, facts(parameters=parameters), [epoch(0)])
    assert 'load_student(Student(model="mine:student"))' in (tmp_path / "README.md").read_text()


def test_every_epoch_s_figures_are_a_row(tmp_path: Path) -> None:
    write_epochs(tmp_path / "epochs.csv", [epoch(0, 1 / 3), epoch(1, NAN)])
    with (tmp_path / "epochs.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["epoch"], second["epoch"]) == ("1", "2")
    assert float(first["validation/RSUM"]) == 1 / 3
    assert math.isnan(float(second["validation/RSUM"]))
    assert first["loss/USA"] == "0.001"
    assert first["temperature/USA text"] == "0.47"
    assert {"loss/total", "learning_rate", "samples_per_second", "wait"} <= first.keys()


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_are_drawn_whatever_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    odd = [replace(epoch(number), wait=0.0, samples_per_second=NAN) for number in range(epochs)]
    draw_curves({"infonce": odd, "soft_labels": [epoch(number, NAN) for number in range(epochs)]}, tmp_path)
    monkeypatch.undo()
    (figure,) = figures
    pyplot.close(figure)
    curves = {axes.get_title(): [list(line.get_ydata()) for line in axes.get_lines()] for axes in figure.axes}
    # What is no number all along has no curve.
    expected = {
        "Validation RSUM": [300.0],
        "Learning rate after the epoch": [1e-3, 1e-3],
        "Pairs per second": [2345.6],
        "Wait for input, share of the time": [0.0, 0.02],
        "Parts of the loss": [1.0, 0.1, 0.001] * 2,
        "Temperatures": [*TEMPERATURES.values()] * 2,
    }
    assert {title: sorted(found) for title, found in curves.items()} == {
        title: sorted([value] * epochs for value in values) for title, values in expected.items()
    }
    with Image.open(tmp_path / "curves.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1650, 726))
