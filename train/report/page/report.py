"""The report of a run: one file, report.html, that needs no server, no network and no script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from stores import Store, TrainParameters
from stores.errors import DamagedRunError
from stores.json_objects import parsed_object
from stores.layout import SAFE_NAME
from stores.pages import write_html
from stores.parameter_loading import recorded_parameters
from stores.parameters import Loss
from train.evaluation.embed import embed_split
from train.evaluation.evaluate import compare_split
from train.evaluation.kept_parts import parts_policy
from train.evaluation.measured_split import MeasuredSplit, measured_split
from train.evaluation.models import StudentModel, load_model
from train.fit.epoch import read_epochs
from train.fit.processes import make_accelerator
from train.fit.run_folder import SOFT, alone
from train.losses.objective import described
from train.report.page.cases import cases
from train.report.page.false_negatives import false_negatives
from train.report.page.modality_pairs import modality_tables, others
from train.report.page.page_models import PageModel, dashed, learned_charts
from train.report.page.projection import projections
from train.report.page.soft_labels import soft_labels
from train.report.results import beside_the_paper, read_metrics, run_table

PAGE_NAME: Final = "report.html"
NO_QUALITY: Final = ("best epoch", "validation RSUM")
"""What tells of the choice of weights, and nothing of the test split."""
SPOKEN: Final = {"infonce": "InfoNCE", SOFT: "soft labels"}


class FinishedTraining(NamedTuple):
    """One finished training of a run."""

    title: str
    """As metrics.json has it."""
    spoken: str
    """How a page calls it."""
    folder: Path
    loss: Loss
    figures: dict[str, Any]
    """On the test split."""
    epochs: list[dict[str, float]]
    """By the names of epochs.csv; what a file leaves empty is absent."""


def write_report(folder: Path, store: Store, given: Mapping[str, MeasuredSplit] | None = None) -> Path:
    """Write the report.html of a finished run in `folder`, trained from `store`, and return its path.

    `given` are, by training as metrics.json names them, the embeddings of the test split at its best epoch. One that is
    not given is embedded again from its best.safetensors, which a single process alone can do.

    Raises:
        CusaError: the run has not finished, its files are damaged, or the store lacks what it was trained from.
    """
    parameters, trainings = _read(folder)
    split = parameters.eval.test
    models = []
    for one in trainings:
        tested = (given or {}).get(one.title) or _embedded(one.folder, parameters, store)
        models.append(PageModel(name=one.spoken, tested=tested, loss=one.loss, epochs=one.epochs))
    write_html(
        folder / PAGE_NAME,
        Path(__file__).with_name("run.html"),
        folder=folder,
        parameters=parameters,
        trainings=trainings,
        store=store,
        split=split,
        loss=described(trainings[-1].loss),
        figures=run_table("This run", {one.spoken: others(one.figures) for one in trainings}, NO_QUALITY),
        modalities=modality_tables({one.spoken: one.figures for one in trainings}),
        paper=beside_the_paper(parameters.student.model, [one.figures for one in trainings]),
        curves=learned_charts(models),
        dashed=dashed(models),
        projections=projections(store, split, models),
        soft=soft_labels(store, split, parameters, models),
        cases=cases(store, split, models),
        suspects=false_negatives(store, parameters.teachers),
    )
    return folder / PAGE_NAME


def _embedded(folder: Path, parameters: TrainParameters, store: Store) -> MeasuredSplit:
    settings = parameters.train
    model = load_model(str(folder), device=settings.device, precision=settings.precision)
    if not isinstance(model, StudentModel):
        raise TypeError(f"{folder} gave a {type(model).__name__}.")
    accelerator, size = make_accelerator(parameters), parameters.eval.batch_size
    policy = parts_policy(model.aligned, False, parameters.eval, folder)
    split, workers = parameters.eval.test, settings.workers
    encoded = embed_split(model.aligned, store, split, accelerator, size, workers, policy=policy)
    return measured_split(model.aligned, encoded, compare_split(model.aligned, encoded, folder), model.temperatures)


def _read(folder: Path) -> tuple[TrainParameters, list[FinishedTraining]]:
    """Return the parameters of a run, and its trainings: the original loss alone first, where there are two."""
    metrics = read_metrics(folder)
    path = folder / "run.json"
    try:
        recorded = dict(parsed_object(path.read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedRunError(path=path, expected="the record of a run") from None
    parameters = recorded_parameters(TrainParameters, recorded, path)
    if not all(re.fullmatch(SAFE_NAME, title) for title in metrics):
        raise DamagedRunError(path=folder / "metrics.json", found=list(metrics), expected="names of trainings' folders")
    trainings = []
    for number, (title, figures) in enumerate(metrics.items(), start=1):
        place = folder if number == len(metrics) else folder / title
        loss = parameters.loss if title == SOFT else alone(parameters.loss)
        epochs, best = read_epochs(place / "epochs.csv"), figures.get("best_epoch")
        if not isinstance(best, int) or not 1 <= best <= len(epochs):
            expected = f"epoch {best!r}, the best in metrics.json"
            raise DamagedRunError("epochs", path=place / "epochs.csv", found=len(epochs), expected=expected)
        trainings.append(FinishedTraining(title, SPOKEN.get(title, title), place, loss, figures, epochs))
    return parameters, trainings
