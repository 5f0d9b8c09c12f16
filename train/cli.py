"""cusa-train: stage 2 from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from stores import Store, TrainParameters, load_parameters
from stores.commands import loading, resumable
from stores.console import output
from stores.streams import Command
from train.report.results import read_metrics, run_table

FILE: Final = click.Path(path_type=Path)


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--params", type=FILE, help="Parameters file; without it, ./params.yaml.")
@click.option("--store", type=FILE, default=Path("artifacts/store"), help="The store to train from.")
@click.option("--run", type=FILE, default=Path("artifacts/run"), help="Where the run is written.")
@click.option(
    "--student", help="open-clip:<model>[/<pretrained tag or file>], or package.module:factory  [student.model]"
)
@click.option("--image-teacher", help="family:name  [teachers.image]")
@click.option("--text-teacher", help="family:name  [teachers.text]")
@click.option("-S", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any parameter.")
@click.option(
    "--overwrite", is_flag=True, help="Train anew where the folder holds another run, whose files go; the same goes on."
)
@click.option("--show", is_flag=True, help="Print the results of the finished run again, and nothing more.")
def main(
    params: Path | None,
    store: Path,
    run: Path,
    student: str | None,
    image_teacher: str | None,
    text_teacher: str | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    show: bool,
) -> None:
    """Train a retrieval model with soft labels from a store. Run it again to resume.

    In several processes, one a GPU: torchrun --nproc-per-node 8 --no-python -- cusa-train … .
    """
    flags = {"student.model": student, "teachers.image": image_teacher, "teachers.text": text_teacher}
    parameters = load_parameters(TrainParameters, params, flags, overrides)
    opened = None if show else Store.open(store)
    with resumable():
        if opened is None:
            _show(read_metrics(run), run)
            return
        # Imported late: the libraries behind it take seconds, a wrong flag should not.
        with loading(stays=True):
            from accelerate import PartialState

            from train import run as runs

        metrics = runs.run(parameters, opened, run, overwrite=overwrite, report=True)
        if PartialState().is_main_process:
            _show(metrics, run)


def _show(metrics: dict[str, Any], run: Path) -> None:
    output().print(run_table(f"test split · run {run}", metrics).terminal())
    if (run / "report.html").exists():
        click.echo(f"Report: {run / 'report.html'}")
    click.echo(f"Plots: {run / 'plots' / 'curves.png'}, {run / 'dvclive' / 'plots'} (dvc plots show)")


if __name__ == "__main__":
    main()
