"""Models on tasks: whatever can be measured is; for the rest, messages say why not and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from accelerate import Accelerator

from stores.errors import CusaError, StoreError
from stores.parameters import Rerank
from train.evaluation import image_retrieval, sts
from train.evaluation.data import DataSets
from train.evaluation.embed import SplitEncoded
from train.evaluation.ensembles import EnsembleOnStore
from train.evaluation.evaluate import shows_pairs
from train.evaluation.image_folders import BENCHMARKS
from train.evaluation.models import EnsembleModel, MeasuredModel, StudentModel, TeacherModel, require
from train.evaluation.on_store import StudentOnStore, TeacherOnStore
from train.evaluation.result import TASKS, Result
from train.evaluation.second_stage import AtDepth
from train.evaluation.similarities import Similarities
from train.evaluation.sts_files import WHERE


def tasks_of(data: DataSets) -> tuple[str, ...]:
    """Return the tasks that there are data for; retrieval in any case, so that a wrong store is reported."""
    wanted = {"retrieval"}
    try:
        truth, labels, pairs = data.has_truth, data.has_labels, data.has_pairs
    except StoreError:
        truth = labels = pairs = False
    if data.coco_annotations or truth:
        wanted.add("eccv")
    if data.images or labels:
        wanted.add(image_retrieval.TASK)
    if data.sts or pairs:
        wanted.add(sts.TASK)
    return tuple(task for task in TASKS if task in wanted)


def measure(
    models: Sequence[MeasuredModel | EnsembleModel],
    tasks: Sequence[str],
    data: DataSets,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    folder: Path,
    compared: Callable[[StudentModel, SplitEncoded, Similarities], None],
    rerank: Rerank | None = None,
    depths: dict[str, list[AtDepth]] | None = None,
) -> Iterator[Result]:
    """Yield a result for each model and task, as each is measured.

    `compared` is called with each student that has compared the store's split for its tasks; a scoring that was
    interrupted goes on in `folder`. Students are reranked as `rerank` says, and `depths` takes what each k gives. What
    cannot be measured is in a result's messages: a missing data set, a task that does not suit the model, embeddings
    that are not finite. A result without figures measured nothing.
    """
    for model in models:
        on_store = _on_store(model, data, accelerator, batch_size, workers, folder, rerank)
        for task in tasks:
            yield _measure(model, task, data, on_store, max(1, workers))
        if (
            isinstance(on_store, StudentOnStore)
            and on_store.compared is not None
            and shows_pairs(on_store.model.aligned)
        ):
            compared(on_store.model, *on_store.compared)
        if depths is not None and isinstance(on_store, StudentOnStore) and (found := on_store.depths):
            depths[model.name] = found


def _on_store(
    model: MeasuredModel | EnsembleModel,
    data: DataSets,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    folder: Path,
    rerank: Rerank | None,
) -> StudentOnStore | TeacherOnStore:
    if isinstance(model, TeacherModel):
        return TeacherOnStore(model, data, max(1, workers))
    how = data, accelerator, batch_size, workers, folder
    if isinstance(model, StudentModel):
        return StudentOnStore(model, *how, rerank)
    first, *others = (StudentOnStore(member, *how) for member in model.members)
    return EnsembleOnStore(first.model, *how, rerank, others=tuple(others))


def _measure(
    model: MeasuredModel | EnsembleModel,
    task: str,
    data: DataSets,
    on_store: StudentOnStore | TeacherOnStore,
    threads: int,
) -> Result:
    result = Result(task=task, model=model.name)
    with _faults_as_messages(result):
        if task in ("retrieval", "eccv"):
            if isinstance(on_store, TeacherOnStore):
                raise CusaError(
                    f"The teacher {model.name} embeds {on_store.model.modality}s alone; {task} needs a model that "
                    f"embeds images and texts in one space."
                )
            (on_store.retrieval if task == "retrieval" else on_store.eccv)(result)
        elif isinstance(model, EnsembleModel):
            raise CusaError(
                f"The ensemble {model.name} embeds nothing; measure the task {task} on each of its members."
            )
        elif task == image_retrieval.TASK:
            require(model, "image", task)
            if data.images:
                result = image_retrieval.measure_image_retrieval(model, data.images, threads)
            _add(result, on_store.image_retrieval, bool(data.images), lambda: data.has_labels, NO_IMAGES)
        else:
            require(model, "text", task)
            if data.sts:
                result = sts.measure_sts(model, data.sts)
            _add(result, on_store.sts, data.sts is not None, lambda: data.has_pairs, NO_STS)
    return result


def _add(
    result: Result, measure_store: Callable[[Result], None], named: bool, usable: Callable[[], bool], advice: str
) -> None:
    """Add the store's figures if it has what the task needs; else the `advice`, unless other data were `named`."""
    try:
        there = usable()
    except CusaError as error:
        there, advice = False, f"{advice} {error.message}"
    if there:
        with _faults_as_messages(result):
            measure_store(result)
    elif not named:
        result.messages.append(advice)


@contextmanager
def _faults_as_messages(result: Result) -> Iterator[None]:
    try:
        yield
    except CusaError as error:
        result.messages.append(error.message)


NO_IMAGES: Final = (
    f"image-retrieval: no images are named, and the store has no labels. Say --images FOLDER, with the unpacked "
    f"folders of {', '.join(benchmark.title for benchmark in BENCHMARKS.values())} (docs/evaluation.md), or "
    f"--images NAME=FOLDER ({', '.join(BENCHMARKS)})."
)
NO_STS: Final = (
    f"sts: no sentence pairs are named, and the store has none. Say --sts FOLDER, with SentEval's data or plain files "
    f"(docs/evaluation.md). Get them from {WHERE}."
)
