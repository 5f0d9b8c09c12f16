"""cusa-eval: any model on any of the paper's tasks, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import click

from stores.commands import loading, resumable
from stores.console import console, output, printable
from stores.errors import CusaError, ParameterError
from stores.parameters import Precision, Rerank
from stores.streams import Command
from train.evaluation.folder import FIGURES, claim_folder, write_figures
from train.evaluation.result import TASKS, Evaluation, Result, short_names

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.evaluation.data import DataSets
    from train.evaluation.models import EnsembleModel, MeasuredModel
    from train.evaluation.second_stage import AtDepth

FILE: Final = click.Path(path_type=Path)
WIDTH: Final = 1000
"""Columns where there is no terminal to ask."""


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("artifacts/run",),
    help="A run's folder, a checkpoint, open-clip:<model>/<pretrained tag or file>, or a teacher (family:name); "
    "students with + between them are one, by their mean score. Several are set side by side.",
)
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="Without it, all there is data for.")
@click.option("--store", type=FILE, default=Path("artifacts/store"), help="A store, for all tasks.")
@click.option("--split", default="test", help="The split of the store.")
@click.option("--images", multiple=True, metavar="[NAME=]FOLDER", help="cub, sop, in-shop, inaturalist; or all in one.")
@click.option("--sts", type=FILE, metavar="FOLDER", help="STS12 to 16, STS-B and SICK-R, from SentEval or as tables.")
@click.option("--coco-annotations", type=FILE, help="dataset_coco.json or captions_val2014.json, for eccv.")
@click.option("--weights", "weights", multiple=True, metavar="MODEL=FILE", help="A teacher's weights.")
@click.option("--rerank", metavar="STUDENT", help="self, a run, x2vlm:<file>, blip:<name> …: ranks the nearest anew.")
@click.option("--rerank-k", type=click.IntRange(min=1), default=Rerank.k, help="How many of the nearest, each way.")
@click.option("--rerank-combine", type=click.Choice(["replace", "add"]), default=Rerank.combine)
@click.option("--out", type=FILE, default=Path("artifacts/eval"), help="The folder for figures.json and report.html.")
@click.option("--device", default="auto", help="auto, cpu, cuda, …")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="auto", help="auto: bf16 where supported.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Images and captions of a store at once.")
@click.option("--workers", type=click.IntRange(min=0), default=2, help="Processes or threads that decode images.")
def main(
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    store: Path,
    split: str,
    images: tuple[str, ...],
    sts: Path | None,
    coco_annotations: Path | None,
    weights: tuple[str, ...],
    rerank: str | None,
    rerank_k: int,
    rerank_combine: Literal["replace", "add"],
    out: Path,
    device: str,
    precision: Precision,
    batch_size: int,
    workers: int,
) -> None:
    """Measure models on retrieval tasks, and set them beside each other and the paper's: in tables and on a page.

    A data set that is missing is named, with where to get it and the layout expected; the other tasks run. The exit
    code is 0 where anything was measured, else 2.
    """
    results: list[Result] = []
    with resumable(lambda: _kept(out, results)):
        # Imported late: the libraries behind it take seconds, a wrong flag should not.
        with loading(stays=True):
            from stores.parameters import Train, TrainParameters
            from train.evaluation.data import DataSets, parse_images
            from train.fit.processes import make_accelerator, precision_of

        places = parse_images(images)
        data = DataSets(store=store, split=split, images=places, sts=sts, coco_annotations=coco_annotations)
        claim_folder(out, store)
        loaded = _load(models, weights, device, precision)
        accelerator = make_accelerator(TrainParameters(train=Train(device=device, precision=precision)))
        computed = (accelerator.device.type, precision_of(accelerator))
        evaluation = Evaluation(models, store, split, *computed, results)
        second = Rerank(student=rerank, k=rerank_k, combine=rerank_combine) if rerank else None
        _measure_and_show(evaluation, loaded, tasks, data, accelerator, batch_size, workers, out, second)


def _load(
    models: Sequence[str], weights: Sequence[str], device: str, precision: Precision
) -> list[MeasuredModel | EnsembleModel]:
    """Load all models before any is measured: a mistake in the last should not cost the hours of the first."""
    from train.evaluation.models import load_model

    if len(set(models)) < len(models):
        raise ParameterError(f"--model names one model twice: {', '.join(models)}. Each is measured once.")
    files: dict[str, str] = {}
    for given in weights:
        model = next((name for name in models if given.startswith(f"{name}=")), None)
        if model is None:
            expected = f"MODEL=FILE, with a MODEL that --model names: {', '.join(models)}"
            raise ParameterError(where="--weights", found=given, expected=expected)
        files[model] = given.removeprefix(f"{model}=")
    return [load_model(model, files.get(model), device, precision) for model in models]


def _measure_and_show(
    evaluation: Evaluation,
    models: Sequence[MeasuredModel | EnsembleModel],
    tasks: Sequence[str],
    data: DataSets,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    out: Path,
    rerank: Rerank | None,
) -> None:
    from train.evaluation.measure import measure, tasks_of
    from train.report.page import Embedded, write_evaluation
    from train.report.reranking_depth import write_depths

    embedded = Embedded()
    depths: dict[str, list[AtDepth]] = {}
    wanted = tasks or tasks_of(data)
    how = batch_size, workers, out, embedded.add, rerank, depths
    for result in measure(models, wanted, data, accelerator, *how):
        evaluation.results.append(result)
        if result.figures:
            write_figures(out, evaluation)
    _show(evaluation.results)
    write_depths(out, depths)
    with console.status("writing report.html"):
        page = write_evaluation(out, evaluation, data.found, embedded)
    click.echo(f"Report: {page}")
    click.echo(f"Figures: {out / FIGURES}")


def _kept(out: Path, results: Sequence[Result]) -> str:
    kept = any(result.figures for result in results)
    return f"What was measured is in {out / FIGURES}." if kept else "Nothing was measured yet."


def _show(results: Sequence[Result]) -> None:
    from train.evaluation.figure_tables import task_tables

    for message in dict.fromkeys(message for result in results for message in result.messages):
        console.print(printable(message), style="yellow", soft_wrap=True)
    names = short_names([*dict.fromkeys(result.model for result in results)])
    printer = output(WIDTH)
    for table in task_tables(results, names):
        printer.print(table.terminal())
    if not any(result.figures for result in results):
        raise CusaError("Nothing was measured; what is missing is said above.")


if __name__ == "__main__":
    main()
