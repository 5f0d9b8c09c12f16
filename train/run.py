"""A run of stage 2: train, compare with InfoNCE alone if asked, measure on the test split, write it all down."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from stores import Store, TrainingError, TrainParameters
from stores.atomic import remove_leftovers, write_json
from stores.console import console
from stores.digests import file_digest, value_digest
from stores.hardware import resolve_device, resolve_precision
from stores.layout import teacher_slug
from stores.parameters import Loss, as_dict
from train.checkpoint import load_checkpoint
from train.embed import embed_split
from train.epoch import Epoch
from train.evaluate import evaluate
from train.report import draw_curves
from train.trainer import Training

SOFT: Final = "soft_labels"
PLAIN: Final = "infonce"
NO_EFFECT: Final = ("train.workers", "train.cache_gib", "train.device_table_gib")
"""Parameters that change how fast a run is and not what it gives: a stopped run goes on under other ones."""


def run(parameters: TrainParameters, store: Store, folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and measure into `folder`, going on where an earlier run with the same parameters stopped.

    Returns:
        What is written to metrics.json: by training, the test figures, the best epoch and its validation RSUM.

    Raises:
        CusaError: the folder holds another run, the store lacks something, or the loss is no longer finite.
    """
    for split in ("train", parameters.eval.validation, parameters.eval.test):
        store.shards(split)
    for slug in _slugs(parameters):
        store.features(slug)
    _claim(folder, parameters, store, overwrite)
    accelerator = _accelerator(parameters)
    softly = bool(parameters.loss.alpha or parameters.loss.beta)
    trainings = [(SOFT if softly else PLAIN, folder, parameters.loss)]
    if parameters.train.compare and softly:
        alone = replace(parameters.loss, alpha=0.0, beta=0.0)
        trainings.insert(0, (PLAIN, folder / PLAIN, alone))
    measured, histories = {}, {}
    for title, place, loss in trainings:
        measured[title], histories[title] = _train_and_measure(place, store, parameters, loss, title, accelerator)
    write_json(folder / "metrics.json", measured)
    draw_curves(histories, folder / "plots")
    return measured


def _claim(folder: Path, parameters: TrainParameters, store: Store, overwrite: bool) -> None:
    """Take the folder for this run: it is empty, or holds the same run, or may be overwritten."""
    wanted = {
        "parameters": as_dict(parameters),
        "data": {
            "shards": store.manifest.source_fingerprint,
            **{slug: store.features(slug).fingerprint for slug in _slugs(parameters)},
        },
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


def _accelerator(parameters: TrainParameters) -> Accelerator:
    device = resolve_device(parameters.train.device)
    precision = resolve_precision(parameters.train.precision, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")


def _train_and_measure(
    place: Path, store: Store, parameters: TrainParameters, loss: Loss, title: str, accelerator: Accelerator
) -> tuple[dict[str, Any], list[Epoch]]:
    training = Training(place, store, parameters, loss, title, accelerator)
    history = training.fit()
    record = load_checkpoint(training.best, training.model)
    split, settings = parameters.eval.test, parameters.eval
    embeddings = embed_split(training.model, store, split, accelerator, settings.batch_size, parameters.train.workers)
    measured = evaluate(training.model, embeddings, store, split)
    measured |= {"best_epoch": record["epoch"] + 1, "validation_RSUM": record["validation_rsum"]}
    # Else accelerate keeps this model and its optimiser through the next training.
    accelerator.free_memory()
    console.print(f"{title}: best epoch {record['epoch'] + 1}, checkpoint {training.best}")
    return measured, history
