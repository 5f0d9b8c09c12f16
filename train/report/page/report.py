"""The report of a run: one file, report.html, that needs no server, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stores import Store
from stores.pages import write_html
from train.evaluation.embed import embed_split
from train.evaluation.evaluate import compare_split
from train.evaluation.measured_split import MeasuredSplit, measured_split
from train.evaluation.models import StudentModel, load_model
from train.fit.processes import make_accelerator
from train.losses.objective import described
from train.report.page.beside_paper import beside_the_paper
from train.report.page.cases import cases
from train.report.page.page_models import PageModel, dashed, learned_charts
from train.report.page.projection import projections
from train.report.page.run_files import FinishedRun, FinishedTraining, read_run
from train.report.page.soft_labels import soft_labels
from train.report.page.suspects import suspects
from train.report.results import run_table

PAGE_NAME: Final = "report.html"
NO_QUALITY: Final = ("best epoch", "validation RSUM")
"""What tells of the choice of weights, and nothing of the test split."""


def write_report(folder: Path, store: Store, given: Mapping[str, MeasuredSplit] | None = None) -> Path:
    """Write `folder`/report.html and return its path.

    Args:
        folder: a finished run's.
        store: what it was trained from.
        given: by training, as metrics.json names them, the embeddings of the test split at its best epoch. One that
            is not given is embedded again from its best.safetensors, which a single process alone can do.

    Raises:
        CusaError: the run has not finished, its files are damaged, or the store lacks what it was trained from.
    """
    run = read_run(folder)
    split = run.parameters.eval.test
    models = [_shown(trained, run, store, given or {}) for trained in run.trainings]
    write_html(
        folder / PAGE_NAME,
        Path(__file__).with_name("run.html"),
        run=run,
        store=store,
        split=split,
        loss=described(run.trainings[-1].loss),
        figures=run_table("This run", {one.spoken: one.figures for one in run.trainings}, NO_QUALITY),
        paper=beside_the_paper(run),
        curves=learned_charts(models),
        dashed=dashed(models),
        projections=projections(store, split, models),
        soft=soft_labels(store, split, run.parameters, models),
        cases=cases(store, split, models),
        suspects=suspects(store, run.parameters.teachers),
    )
    return folder / PAGE_NAME


def _shown(trained: FinishedTraining, run: FinishedRun, store: Store, given: Mapping[str, MeasuredSplit]) -> PageModel:
    embedded = given.get(trained.title) or _embedded(trained, run, store)
    return PageModel(name=trained.spoken, tested=embedded, loss=trained.loss, epochs=trained.epochs)


def _embedded(trained: FinishedTraining, run: FinishedRun, store: Store) -> MeasuredSplit:
    settings = run.parameters.train
    model = load_model(str(trained.folder), device=settings.device, precision=settings.precision)
    if not isinstance(model, StudentModel):
        raise TypeError(f"{trained.folder} gave a {type(model).__name__}.")
    accelerator = make_accelerator(run.parameters)
    split, size = run.parameters.eval.test, run.parameters.eval.batch_size
    encoded = embed_split(model.aligned, store, split, accelerator, size, settings.workers)
    return measured_split(
        model.aligned, encoded, compare_split(model.aligned, encoded, trained.folder), model.temperatures
    )
