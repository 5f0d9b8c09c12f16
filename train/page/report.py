"""The report of a run: one file, report.html, that needs no server, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jinja2

from stores import Store
from stores.atomic import write_text
from train.embed import embed_split
from train.evaluation.models import StudentModel, load_model
from train.page.cases import cases
from train.page.charts import HEIGHT, WIDTH
from train.page.curves import curves
from train.page.projection import projections
from train.page.run_files import Run, Trained, read_run
from train.page.sample import Tested
from train.page.soft_labels import soft_labels
from train.page.suspects import suspects
from train.page.tables import beside_the_paper, own_table
from train.processes import make_accelerator

PAGE_NAME: Final = "report.html"


def write_report(folder: Path, store: Store, tested: Mapping[str, Tested] | None = None) -> Path:
    """Write `folder`/report.html and return its path.

    Args:
        folder: a finished run's.
        store: what it was trained from.
        tested: by training, as metrics.json names them, the embeddings of the test split at its best epoch. One that
            is not given is embedded again from its best.safetensors, which a single process alone can do.

    Raises:
        CusaError: the run has not finished, its files are damaged, or the store lacks what it was trained from.
    """
    run = read_run(folder)
    split = run.parameters.eval.test
    given = dict(tested or {})
    for trained in run.trainings:
        if trained.title not in given:
            given[trained.title] = _embedded(trained, run, store)
    page = _template().render(
        run=run,
        store=store,
        split=split,
        width=WIDTH,
        height=HEIGHT,
        figures=own_table(run.trainings),
        paper=beside_the_paper(run),
        curves=curves(run.trainings),
        projections=projections(store, split, run.trainings, given),
        soft=soft_labels(store, split, run, given),
        cases=cases(store, split, run.trainings, given),
        suspects=suspects(store, run.parameters),
    )
    # Half of a surrogate pair or a NUL is nothing that a page can hold.
    page = page.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    write_text(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(PAGE_NAME)


def _embedded(trained: Trained, run: Run, store: Store) -> Tested:
    settings = run.parameters.train
    model = load_model(str(trained.folder), device=settings.device, precision=settings.precision)
    if not isinstance(model, StudentModel):
        raise TypeError(f"{trained.folder} gave a {type(model).__name__}.")
    accelerator = make_accelerator(run.parameters)
    split, size = run.parameters.eval.test, run.parameters.eval.batch_size
    embeddings = embed_split(model.aligned, store, split, accelerator, size, settings.workers)
    return Tested(embeddings, model.aligned.similarity, model.device)
