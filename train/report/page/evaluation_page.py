"""The page of an evaluation: all models side by side, in figures and, where they embedded a store's split, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from models.encoded import tensors_of
from stores import CusaError, Store, TrainParameters
from stores.layout import teacher_slug
from stores.pages import write_html
from stores.parameters import Teachers
from train.evaluation.embed import SplitEncoded
from train.evaluation.figure_tables import task_tables
from train.evaluation.folder import REPORT
from train.evaluation.measured_split import MeasuredSplit, measured_split
from train.evaluation.models import StudentModel
from train.evaluation.result import Evaluation, Result, short_names
from train.evaluation.similarities import Similarities
from train.fit.epoch import read_epochs
from train.losses.objective import make_objective
from train.report.page.cases import cases
from train.report.page.false_negatives import false_negatives
from train.report.page.modality_pairs import modality_tables, others
from train.report.page.page_models import PageModel, dashed, learned_charts
from train.report.page.projection import projections
from train.report.page.soft_labels import soft_labels

PICTURED: Final = 4
"""Models that have pictures, at most; the tables have all."""
T = TypeVar("T")


class Embedded:
    """The students that embedded a store's split, in their order: the first `PICTURED` with their embeddings."""

    def __init__(self) -> None:
        self.count = 0
        self.pictured: list[tuple[StudentModel, MeasuredSplit]] = []

    def add(self, model: StudentModel, encoded: SplitEncoded, similarities: Similarities) -> None:
        """Add a student, unless what it encoded is not finite and so shows nothing."""
        if all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(encoded)):
            self.count += 1
            if len(self.pictured) < PICTURED:
                self.pictured.append((model, measured_split(model.aligned, encoded, similarities, model.temperatures)))


def write_evaluation(folder: Path, evaluation: Evaluation, store: Store | None, embedded: Embedded) -> Path:
    """Write `folder`/report.html and return its path.

    Without a `store`, or a student that has `embedded` its split, the page has no pictures. A section whose data are
    unknown, such as an open_clip model's teachers, is left out; faults become messages.
    """
    messages = list(dict.fromkeys(message for result in evaluation.results for message in result.messages))
    names = short_names(evaluation.models)
    pictures: dict[str, Any] = dict.fromkeys(("curves", "dashed", "projections", "soft", "cases", "suspects"))
    if store is not None and embedded.pictured:
        pictures |= _pictures(store, evaluation.split, embedded, names, messages)
    write_html(
        folder / REPORT,
        Path(__file__).with_name("evaluation.html"),
        evaluation=evaluation,
        store=store,
        split=evaluation.split,
        names=names,
        tables=task_tables([replace(one, figures=_flat(one)) for one in evaluation.results], names),
        modalities=modality_tables(
            {names[one.model]: found for one in evaluation.results for found in _of_pairs(one).values()}
        ),
        embedded=embedded,
        messages=messages,
        **pictures,
    )
    return folder / REPORT


def _of_pairs(result: Result) -> dict[str, Any]:
    """Return the figures of data sets on which every pair of modalities was measured."""
    return {name: found for name, found in result.figures.items() if isinstance(found, dict) and "pairs" in found}


def _flat(result: Result) -> dict[str, Any]:
    return result.figures | {name: others(found) for name, found in _of_pairs(result).items()}


def _pictures(
    store: Store, split: str, embedded: Embedded, names: dict[str, str], messages: list[str]
) -> dict[str, Any]:
    """Return the page's pictures by name, None where there are none; faults are added to the `messages`."""

    def attempted(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except CusaError as error:
            messages.append(error.message)
            return None

    models = []
    for model, tested in embedded.pictured:
        epochs = attempted(partial(_epochs, Path(model.name))) or []
        loss = model.parameters.loss if model.parameters else None
        models.append(PageModel(name=names[model.name], tested=tested, loss=loss, epochs=epochs))
    trained = [model.parameters for model, _ in embedded.pictured if model.parameters is not None]
    labels, teachers = _soft_parameters(store, trained), _teachers(store, trained)
    return {
        "curves": learned_charts(models),
        "dashed": dashed([model for model in models if model.epochs]),
        "projections": attempted(lambda: projections(store, split, models)),
        "soft": labels and attempted(lambda: soft_labels(store, split, labels, models)),
        "cases": attempted(lambda: cases(store, split, models)),
        "suspects": teachers
        and "train" in store.manifest.splits
        and attempted(lambda: false_negatives(store, teachers)),
    }


def _epochs(folder: Path) -> list[dict[str, float]]:
    """Return the epochs of the training whose folder it is; none of anything else."""
    path = folder / "epochs.csv"
    return read_epochs(path) if path.is_file() else []


def _soft_parameters(store: Store, trained: Sequence[TrainParameters]) -> TrainParameters | None:
    """Return the first parameters whose teachers the store has, of a training with soft labels if there is one."""
    known = [parameters for parameters in trained if _has(store, parameters.teachers)]
    return max(known, key=lambda parameters: make_objective(parameters.loss).soft, default=None)


def _teachers(store: Store, trained: Sequence[TrainParameters]) -> Teachers | None:
    """Return the teachers of the first training, if the store has them, else the only ones of the store."""
    if trained and _has(store, trained[0].teachers):
        return trained[0].teachers
    teachers = store.manifest.teachers.values()
    images, texts = ([one.spec for one in teachers if one.modality == modality] for modality in ("image", "text"))
    return Teachers(image=images[0], text=texts[0]) if len(images) == len(texts) == 1 else None


def _has(store: Store, teachers: Teachers) -> bool:
    wanted = {teacher_slug(teachers.image, "image"), teacher_slug(teachers.text, "text")}
    return wanted <= store.manifest.teachers.keys()
