"""A run of stage 2: train, compare with InfoNCE alone if asked, measure on the test split, write it all down."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator

from stores import Store, TrainingError, TrainParameters
from stores.atomic import remove_leftovers, write_json
from stores.console import console
from stores.digests import file_digest, value_digest
from stores.layout import teacher_slug
from stores.parameters import Loss, as_dict
from train.checkpoint import load_checkpoint
from train.curves import event_writer
from train.embed import embed_split
from train.environment import record_start
from train.evaluate import evaluate
from train.export import export_student
from train.processes import Processes, make_accelerator
from train.report import draw_curves
from train.stops import Stop, stopping
from train.trainer import Training

SOFT: Final = "soft_labels"
PLAIN: Final = "infonce"
NO_EFFECT: Final = tuple(
    f"train.{name}" for name in ("workers", "cache_gib", "device_table_gib", "save_every", "keep_every", "tensorboard")
)
"""Parameters that change how fast a run is and not what it gives: a stopped run goes on under other ones."""


def run(parameters: TrainParameters, store: Store, folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and measure into `folder`, going on where an earlier run with the same parameters stopped.

    In a process that a launcher started beside others, all of them train together; the main one writes.

    Returns:
        What is written to metrics.json: by training, the test figures, the best epoch and its validation RSUM.

    Raises:
        CusaError: the folder holds another run, the store lacks something, or the loss is no longer finite.
        SystemExit: the run was stopped by a signal, with the exit code that goes with it.
    """
    for split in ("train", parameters.eval.validation, parameters.eval.test):
        store.shards(split)
    for slug in _slugs(parameters):
        store.features(slug)
    if parameters.train.tensorboard:
        event_writer()
    accelerator = make_accelerator(parameters)
    processes = Processes(accelerator)
    console.quiet = not processes.is_main
    measured: dict[str, Any] = {}
    histories = {}
    with stopping(processes) as stop:
        processes.once(lambda: _claim(folder, parameters, store, overwrite))
        if processes.is_main:
            precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
            record_start(folder, str(accelerator.device), precision, processes.count)
        for title, place, loss in _trainings(parameters, folder):
            training = Training(place, store, parameters, loss, title, accelerator, stop)
            histories[title] = training.fit()
            measured[title] = _measure(training, store, parameters, title, accelerator, stop)
            if processes.is_main:
                training.describe(measured[title])
            # Else accelerate keeps this model and its optimiser through the next training.
            accelerator.free_memory()
    if processes.is_main:
        write_json(folder / "metrics.json", measured)
        draw_curves(histories, folder / "plots")
        # Once more, now that there are a table and curves to point to; the last training's folder is the run's.
        training.describe(measured[title])
    return measured


def _trainings(parameters: TrainParameters, folder: Path) -> list[tuple[str, Path, Loss]]:
    """Return title, folder and loss of each training of the run; InfoNCE alone comes first, where it is asked for."""
    softly = bool(parameters.loss.alpha or parameters.loss.beta)
    trainings = [(SOFT if softly else PLAIN, folder, parameters.loss)]
    if parameters.train.compare and softly:
        alone = replace(parameters.loss, alpha=0.0, beta=0.0)
        trainings.insert(0, (PLAIN, folder / PLAIN, alone))
    return trainings


def _claim(folder: Path, parameters: TrainParameters, store: Store, overwrite: bool) -> None:
    """Take the folder for this run: it is empty, or holds the same run, or may be overwritten."""
    wanted = {
        "parameters": as_dict(parameters),
        "data": _fingerprints(store, parameters),
        "mixed_in": {path: _fingerprints(Store.open(Path(path)), parameters) for path in parameters.train.mix_in},
        "code": value_digest([file_digest(path) for path in sorted(Path(__file__).parent.glob("*.*"))]),
    }
    path = folder / "run.json"
    if path.exists():
        try:
            changed = _differences(json.loads(path.read_text()), wanted)
        except ValueError:
            changed = ["a run.json that cannot be read"]
        if not changed:
            remove_leftovers(folder)
            return
        if not overwrite:
            raise TrainingError(
                f"{folder} holds a run that differs in {', '.join(changed)}. "
                f"Choose another folder with --run, or say --overwrite."
            )
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty and holds no run of ours. Choose another folder with --run.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _fingerprints(store: Store, parameters: TrainParameters) -> dict[str, str]:
    """Return what tells a store's data and features from others."""
    features = {slug: store.features(slug).fingerprint for slug in _slugs(parameters)}
    return {"shards": store.manifest.source_fingerprint, **features}


def _slugs(parameters: TrainParameters) -> tuple[str, str]:
    return teacher_slug(parameters.teachers.image, "image"), teacher_slug(parameters.teachers.text, "text")


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Return what is not the same in two run.json, but for what changes no result."""
    if name.removeprefix("parameters.") in NO_EFFECT:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))]
    return [] if found == wanted else [f"{name.removeprefix('parameters.')} ({found} → {wanted})"]


def _measure(
    training: Training, store: Store, parameters: TrainParameters, title: str, accelerator: Accelerator, stop: Stop
) -> dict[str, Any]:
    """Measure the best checkpoint on the test split, and write its student for plain open_clip."""
    accelerator.wait_for_everyone()  # the main process may still be writing it
    record = load_checkpoint(training.best, training.model)
    split, settings = parameters.eval.test, parameters.eval
    workers = parameters.train.workers
    embeddings = embed_split(training.model, store, split, accelerator, settings.batch_size, workers, stop.check)

    def measure() -> dict[str, Any]:
        tau = training.model.temperatures.contrast().item()
        export_student(training.model.student, training.best.with_name("student.safetensors"), tau)
        return evaluate(training.model, embeddings, store, split)

    measured = stop.processes.once(measure)
    measured |= {"best_epoch": record["epoch"] + 1, "validation_RSUM": record["validation_rsum"]}
    console.print(f"{title}: best epoch {record['epoch'] + 1}, checkpoint {training.best}")
    return measured
