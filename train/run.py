"""A run of stage 2: train, compare with the original loss alone if asked, measure on the test split, write it down."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache

from models.aligned import AlignedModel
from models.checkpoint import load_checkpoint
from models.export import export_student
from models.students import as_student, load_student, with_features
from models.trained import checkpoint_file, run_path
from stores import ParameterError, Store, TrainingError, TrainParameters
from stores.atomic import write_json
from stores.commands import loading
from stores.console import console
from stores.digests import file_digest
from stores.errors import RunFolderError
from stores.layout import teacher_slug
from stores.lock import lock_held
from stores.ownership import remove_leftovers
from stores.parameters import Loss, as_dict
from train.evaluation.embed import SplitEncoded, embed_split
from train.evaluation.evaluate import compare_split, evaluate, shows_pairs, those_present
from train.evaluation.kept_parts import parts_policy
from train.evaluation.measured_split import MeasuredSplit, measured_split
from train.evaluation.second_stage import SELF, AtDepth, SecondStage, by_depth, check_second_stage
from train.fit.claim import make_room, replaces_another, run_kinds
from train.fit.curves import event_writer
from train.fit.environment import record_start
from train.fit.epoch import Epoch
from train.fit.processes import Processes, make_accelerator, precision_of
from train.fit.run_folder import SOFT, Facts, alone, describe, title_of
from train.fit.stops import Stop, stopping
from train.fit.trainer import Training
from train.report.reranking_depth import write_depths
from train.report.training_curves import draw_curves
from train.version import VERSIONS


def run(
    parameters: TrainParameters, store: Store, folder: Path, *, overwrite: bool = False, report: bool = False
) -> dict[str, Any]:
    """Train and measure into `folder`, going on where an earlier run with the same parameters stopped.

    `report` says whether to write report.html as well.

    In a process that a launcher started beside others, all of them train together; the main one writes.

    Returns:
        What is written to metrics.json: by training, the test figures, the best epoch and its validation RSUM.

    Raises:
        CusaError: the folder holds another run, the store lacks something, or the loss is no longer finite.
        SystemExit: the run was stopped by a signal, with the exit code that goes with it.
    """
    parameters = replace(parameters, student=with_features(parameters.student, store))
    _check_splits(parameters, store)
    for slug in _slugs(parameters):
        store.features(slug)
    if parameters.train.tensorboard:
        event_writer()
    accelerator = make_accelerator(parameters)
    processes = Processes(accelerator)
    if not processes.is_main:
        console.quiet = True
    with ExitStack() as stack:
        stop = stack.enter_context(stopping(processes))
        processes.alone(lambda: stack.enter_context(_lock(folder)))
        trainings = _trainings(parameters, folder)
        identity = processes.once(lambda: _identity(parameters, store))
        replaces = processes.once(lambda: replaces_another(folder, identity, overwrite))
        if replaces or processes.once(lambda: not (folder / "run.json").exists()):
            processes.alone(lambda: check_second_stage(parameters.eval.rerank))
        if replaces:
            processes.alone(lambda: _check_kept(parameters, folder))
            # Built and tried before anything is removed: a typo costs nobody the run that it would have replaced.
            title, place, loss = trainings[-1]
            Training(place, store, replace(parameters, loss=loss), title, accelerator, stop).try_step()
            accelerator.free_memory()
            processes.alone(lambda: make_room(folder))
        processes.alone(lambda: _claim(folder, identity, accelerator))
        if processes.any(not (folder / "run.json").exists()):
            raise TrainingError(f"Not every process sees {folder}. Choose a folder that all machines share with --run.")
        finished = {}
        for title, place, loss in trainings:
            finished[title] = _train_and_measure(place, store, replace(parameters, loss=loss), title, accelerator, stop)
            # The model, which accelerate keeps too, would go on filling the device through the next training.
            accelerator.free_memory()
            clear_device_cache(garbage_collection=True)
        processes.alone(lambda: _write(folder, store, finished, report))
    return {title: training.measured for title, training in finished.items()}


def _check_splits(parameters: TrainParameters, store: Store) -> None:
    """Raise a `ParameterError` unless the store has what is trained and measured on."""
    held = store.manifest.splits
    store.shards("train")
    for name in ("validation", "test"):
        if (split := getattr(parameters.eval, name)) not in held:
            others = [split for split in held if split != "train"]
            advice = (
                f"Name one of them: -S eval.{name}={others[-1]}."
                if others
                else "Give the data set a split to measure on: --source train=… --source val=…"
            )
            expected = f"a split of {store.root}: {', '.join(held)}"
            raise ParameterError(where=f"eval.{name}", found=split, expected=expected, advice=advice)


class _Finished(NamedTuple):
    """What is left of a training."""

    measured: dict[str, Any]
    history: list[Epoch]
    facts: Facts
    folder: Path
    tested: MeasuredSplit | None
    """On the test split; None where that could not be compared, and in processes beside the main one."""
    depths: Sequence[AtDepth] = ()
    """What a second stage gives on the test split by how many it reranks."""


def _write(folder: Path, store: Store, finished: dict[str, _Finished], report: bool) -> None:
    """Write what the trainings gave; pages of folders last, since they list what lies there."""
    write_json(folder / "metrics.json", {title: training.measured for title, training in finished.items()})
    write_depths(folder, {title: training.depths for title, training in finished.items() if training.depths})
    draw_curves({title: training.history for title, training in finished.items()}, folder / "plots")
    shows = all("RSUM" not in one.measured or one.tested is not None for one in finished.values())
    if report and not shows:
        console.print("No report.html: it shows samples beside captions, and the student does not compare these.")
    if report and shows:
        # Imported late: the libraries behind it take seconds, which a run without a report need not wait for.
        with loading():
            from train.report.page import write_report

        console.print("writing report.html …")
        write_report(folder, store, {title: one.tested for title, one in finished.items() if one.tested is not None})
    for training in finished.values():
        describe(training.folder, training.facts, training.history, training.measured)


def _lock(folder: Path) -> AbstractContextManager[None]:
    """Return the lock of a run's folder, which lies beside it: one run at a time."""
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    return lock_held(place.with_name(f".{place.name}.cusa-lock"), folder, "--run", TrainingError)


def _trainings(parameters: TrainParameters, folder: Path) -> list[tuple[str, Path, Loss]]:
    """Return title, folder and loss of each training of the run; the original loss alone is first, where asked for."""
    loss, original = parameters.loss, alone(parameters.loss)
    trainings = [(title_of(loss), folder, loss)]
    if parameters.train.compare and title_of(loss) == SOFT:
        trainings.insert(0, (title_of(original), folder / title_of(original), original))
    return trainings


def _claim(folder: Path, identity: dict[str, Any], accelerator: Accelerator) -> None:
    """Take the folder for this run, and write down which it is and on what it started."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, run_kinds())
    write_json(folder / "run.json", identity)
    record_start(folder, str(accelerator.device), precision_of(accelerator), accelerator.num_processes)


def _identity(parameters: TrainParameters, store: Store) -> dict[str, Any]:
    """Return what tells a run from others: whatever its results follow from."""
    names = [*_slugs(parameters), *_read_by_the_student(parameters)]
    mixed = [(path, _fingerprints(Store.open(Path(path)), names)) for path in parameters.train.mix_in]
    return {
        "parameters": as_dict(parameters),
        "data": _fingerprints(store, names) | _digests_read(parameters),
        # In their order, which gives each its part of every batch.
        "mixed_in": [list(pair) for pair in mixed],
        "versions": VERSIONS,
    }


def _files_read(parameters: TrainParameters) -> dict[str, Path]:
    """Return the files that the training reads beside the store, by what they are."""
    paths = {"clean": parameters.train.clean, "weights": parameters.student.weights}
    return {name: checkpoint_file(Path(path)) for name, path in paths.items() if path is not None}


def _digests_read(parameters: TrainParameters) -> dict[str, str]:
    """Return what tells those files from others; an absent one is reported when it is read."""
    return {name: file_digest(file) for name, file in _files_read(parameters).items() if file.is_file()}


def _check_kept(parameters: TrainParameters, folder: Path) -> None:
    """Refuse to replace a run by one that reads a file of it."""
    model, vocabulary = parameters.student.model, parameters.student.sgraf.vocabulary
    rerank = parameters.eval.rerank
    second = run_path(rerank.student) if rerank and rerank.student != SELF else None
    weights = model.partition("/")[2] if model.startswith("sgraf:") else model.removeprefix("x2vlm:")
    others = {"vocabulary": vocabulary, "second stage": second, "student's weights": weights}
    places = _files_read(parameters) | {name: Path(place) for name, place in others.items() if place}
    for name, file in places.items():
        if file.resolve().is_relative_to(folder.resolve()):
            raise RunFolderError(f"replacing it would remove the {name} that the new run reads, {file}", path=folder)


def _read_by_the_student(parameters: TrainParameters) -> list[str]:
    """Return the names of the stored features that the student reads, beside the teachers'."""
    if parameters.student.model.startswith(("open-clip:", "towers:", "x2vlm:", "blip:")):
        return []
    inputs = as_student(load_student(parameters.student)).inputs
    return [name for given in inputs.values() for name in given.reads]


def _fingerprints(store: Store, names: Sequence[str]) -> dict[str, str]:
    """Return what tells a store's data and its features of these names from others."""
    features = {name: store.features(name).fingerprint for name in names}
    paired = {name: digest for name, digest in store.manifest.files.items() if name == "pairing.arrow"}
    return {"shards": store.manifest.source_fingerprint, **paired, **features}


def _slugs(parameters: TrainParameters) -> tuple[str, str]:
    return teacher_slug(parameters.teachers.image, "image"), teacher_slug(parameters.teachers.text, "text")


def _train_and_measure(
    folder: Path, store: Store, parameters: TrainParameters, title: str, accelerator: Accelerator, stop: Stop
) -> _Finished:
    """Train, measure the best checkpoint on the test split, and write its student for plain open_clip."""
    training = Training(folder, store, parameters, title, accelerator, stop)
    history = training.fit()
    record = load_checkpoint(training.checkpoints.best, {"model": training.model, "objective": training.objective})
    split, settings = parameters.eval.test, parameters.eval
    workers = parameters.train.workers
    model = training.model.eval()
    second = SecondStage(settings.rerank, model, accelerator) if settings.rerank else None

    def embed(one: AlignedModel, reranks: bool) -> SplitEncoded:
        policy = parts_policy(one, reranks, settings, folder)
        return embed_split(one, store, split, accelerator, settings.batch_size, workers, stop.check, policy)

    encoded = embed(model, bool(second and second.is_own))
    temperatures = training.objective.temperatures()
    scorer = second.first_scorer(model) if second else None
    compared = cache(partial(compare_split, model, encoded, folder, stop.check_alone, scorer))
    others = second.encoded(encoded, embed) if second else encoded
    reranked = cache(lambda: second.over(compared(), others, folder, stop.check_alone)) if second else None
    depths: list[AtDepth] = []

    def measure() -> dict[str, Any]:
        export_student(model.student, folder / "student.safetensors", temperatures.get("InfoNCE"))
        figures, faults = evaluate(model, encoded, compared, store, split, settings, folder, reranked)
        if reranked and "reranked" in figures:
            depths.extend(by_depth(*those_present(model, encoded, reranked(), store, split)))
        for name, fault in faults.items():
            console.print(f"{name} is not measured on {split}: {fault}", style="yellow")
        return figures

    model.zero_grad(set_to_none=True)
    measured = stop.processes.once(measure)
    measured |= {"best_epoch": record["epoch"] + 1, "validation_RSUM": record["validation_rsum"]}
    console.print(f"{title}: best epoch {record['epoch'] + 1}, checkpoint {training.checkpoints.best}")
    is_shown = stop.processes.is_main and "RSUM" in measured and shows_pairs(model)
    shown = measured_split(model, encoded, compared(), temperatures) if is_shown else None
    return _Finished(measured, history, training.facts(), folder, shown, depths)
