"""Whatever standard output and error are, a command does its work, and what it says can be read."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_commands import CHECKOUT, CPU, SMALL

from pipeline.inspection.cli import main
from stores import Store
from stores.console import Listing, output
from stores.streams import Output
from train.evaluation.figure_tables import task_tables
from train.evaluation.result import Result
from train.fit import live
from train.report.results import read_metrics, run_table

TINY = "--image-teacher tiny_teachers:mean_colour --text-teacher tiny_teachers:length"


def shell(line: str, module: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of the shell in which COMMAND stands for the command of a module."""
    paths = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}, {str(CHECKOUT / 'tests')!r}]"
    command = f'{sys.executable} -c "{paths}; from {module} import main; main()"'
    return subprocess.run(
        ["bash", "-c", line.replace("COMMAND", command)], cwd=folder, capture_output=True, timeout=120, check=False
    )


PLACES = {
    "closed": ("COMMAND info STORE >&-", 0, b"", b""),
    "both-closed": ("COMMAND info STORE >&- 2>&-", 0, b"", b""),
    "reader-gone": ("COMMAND info STORE --json | true; exit ${PIPESTATUS[0]}", 0, b"", b""),
    "full": ("COMMAND info STORE >/dev/full", 2, b"", b"Error: Standard output cannot be written ([Errno 28] No space"),
    "error-full": ("COMMAND info nothing 2>/dev/full", 2, b"", b""),
    "ascii": ("PYTHONIOENCODING=ascii COMMAND info STORE", 0, b"+----", b""),
    "latin-1": ("PYTHONIOENCODING=latin-1 COMMAND verify STORE 2>/dev/null", 0, b"Everything holds.", b""),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_command_ends_well_wherever_its_output_goes(place: str, scenes_store: Store, tmp_path: Path) -> None:
    line, code, printed, said = PLACES[place]
    done = shell(line.replace("STORE", str(scenes_store.root)), "pipeline.inspection.cli", tmp_path)
    assert done.returncode == code
    assert printed in done.stdout
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
    assert place not in ("ascii", "latin-1") or done.stdout.isascii()


@pytest.mark.parametrize(
    "streams", [">&- 2>&-", "2>&1 | true", ">/dev/full 2>/dev/full"], ids=["closed", "pipe", "full"]
)
def test_work_is_done_though_nobody_hears_of_it(streams: str, tmp_path: Path) -> None:
    flags = " ".join(f"'{flag}'" for flag in SMALL)
    shell(f"COMMAND --params /dev/null --store store {TINY} {flags} {streams}", "pipeline.cli", tmp_path)
    assert len(Store.open(tmp_path / "store").samples) == 36


def test_a_training_is_finished_though_nobody_hears_of_it(scenes_store: Store, tmp_path: Path) -> None:
    given = "--student tiny_students:Weighing -S train.epochs=1 -S train.batch_size=16 -S train.compare=false"
    flags = " ".join([*CPU, given, "-S train.workers=0"])
    line = f"COMMAND --params /dev/null --store {scenes_store.root} --run run {flags} >&- 2>&-"
    assert shell(line, "train.cli", tmp_path).returncode == 0
    assert "soft_labels" in read_metrics(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()


def test_what_an_encoding_lacks_keeps_its_width() -> None:
    raw = io.BytesIO()
    stream = Output(io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    stream.write("a … b → c ⠋ 犬 \udc80 é")
    assert raw.getvalue().decode("latin-1") == "a . b > c * ? ? é"


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["info", "verify", "neighbours --row 3"], ids=["info", "verify", "neighbours"])
def test_tables_are_readable_in_few_columns(
    columns: int, command: str, scenes_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name, *arguments = command.split()
    printed = CliRunner().invoke(main, [name, str(scenes_store.root), *arguments]).stdout
    assert max(map(len, printed.splitlines())) <= columns
    assert "…" not in printed
    words = {"info": "caption_pairs.arrow", "verify": "absent rows", "neighbours": "similarity"}
    assert words[name] in printed


@pytest.mark.parametrize("columns", [40, 80])
def test_the_figures_are_readable_in_few_columns(
    columns: int, scenes_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    metrics = read_metrics(scenes_run)
    figures = {"image_to_text": {"R@1": 12.3, "R@10": 45.6}}
    models = ("artifacts/a-run", "open-clip:ViT-B-32/laion")
    results = [Result(task="retrieval", model=model, figures={"COCO 1K": figures}) for model in models]
    (compared,) = task_tables(results, dict.fromkeys(models, "a-run-of-a-long-name"))
    for table in (run_table("test split", metrics), compared):
        output().print(table.terminal())
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= columns
        assert "…" not in printed
    assert re.search(r"image→text R@10[^0-9]*(\S+: )?45\.6", printed)


def test_a_table_stands_upright_where_a_word_would_be_cut() -> None:
    table = Listing(title="things")
    for heading in ("name", "value"):
        table.add_column(heading)
    table.add_row("[b]one[/]", "a-word-of-twenty-five-char")
    wide, narrow = io.StringIO(), io.StringIO()
    Console(file=wide, width=60).print(table)
    Console(file=narrow, width=36).print(table)
    assert "│ one  │ a-word" in wide.getvalue()
    lines = [line.rstrip() for line in narrow.getvalue().splitlines()]
    assert lines == ["things", "name: one", "  value: a-word-of-twenty-five-char"]


def test_the_live_view_stands_upright_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(live, "console", Console(file=stream, width=40))
    view = live.LiveView("soft_labels", epochs=2, steps=10, batch_size=8)
    figures = {"loss": {"InfoNCE": 2.5, "CSA": 1.2}, "temperatures": {"contrast": 0.07}}
    view.step(live.StepMetrics(step=3, learning_rate=1e-3, samples_per_second=10.0, wait=0.0, **figures))
    live.console.print(view._view())
    assert "learning rate" in stream.getvalue()
    assert "contrast" in stream.getvalue()
