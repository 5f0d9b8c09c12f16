"""A student with what it is scored by: a trained run with the heads of its training, or one as it is published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from models.aligned import AlignedModel
from models.checkpoint import frozen_parameters, load_checkpoint, read_module, read_record, tensor_names
from models.students import SGRAF, load_student
from stores.errors import CheckpointError, StudentError, TrainingError
from stores.parameter_loading import recorded_parameters
from stores.parameters import Student, TrainParameters
from stores.plugins import recorded_in

BEST: Final = "best.safetensors"
RUN: Final = "run:"
PUBLISHED: Final = ("open-clip:", "sgraf:", "x2vlm:", "blip:")
"""Families of students that are measured as they are published."""
UNI_HEADS: Final = "uni_heads."


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, and what its checkpoint recorded of the training."""

    model: AlignedModel
    parameters: TrainParameters
    record: Mapping[str, Any]


def checkpoint_file(path: Path) -> Path:
    """Return the file of a run's folder (its best checkpoint), or the file itself."""
    return path / BEST if path.is_dir() else path


def begin_with(model: AlignedModel, path: Path) -> None:
    """Give a model the weights of a run's folder (its best checkpoint) or of a checkpoint file, in place.

    Uni-modal heads that only one of the two has are passed over: those of the model start as they do without a run.

    Raises:
        CheckpointError: there is no such checkpoint, or its weights are another model's.
    """
    file = checkpoint_file(path)
    found = read_module(file, "model")
    new = model.state_dict()
    heads = {name for name in found.keys() ^ new.keys() if name.startswith(UNI_HEADS)}
    wrong = sorted(
        name for name in (found.keys() | new.keys()) - heads if _shape(found.get(name)) != _shape(new.get(name))
    )
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors do not fit; the first is {name}",
            path=file,
            where="student.weights",
            found=_shape(found.get(name)),
            expected=_shape(new.get(name)),
            advice=f"Train the student that the run trained (run.json); what it froze is in its {BEST} alone.",
        )
    model.load_state_dict({name: tensor for name, tensor in found.items() if name in new}, strict=False)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "no such tensor" if tensor is None else tuple(tensor.shape)


def load_trained(path: Path) -> Trained:
    """Load the model of a run's folder (its best checkpoint) or of a checkpoint file.

    Raises:
        TrainingError: there is no such run, or no such checkpoint.
        StudentError: its student cannot be had.
    """
    file = checkpoint_file(path)
    if path.is_dir() and not file.is_file():
        raise TrainingError(f"{path} holds no {BEST}: it is not the run of a cusa-train that finished an epoch.")
    record = read_record(file)
    parameters = recorded_parameters(TrainParameters, record.get("parameters", {}), f"{file} (its record)")
    # What was frozen is loaded as it was where the checkpoint does without it.
    freeze = parameters.student.freeze if "frozen" in record else []
    settings = _with_kept_files(parameters.student, file.parent)
    with recorded_in(file.parent):
        student = load_student(replace(settings, freeze=freeze, gradient_checkpointing=False))
    has_uni_heads = any(name.startswith(f"model.{UNI_HEADS}") for name in tensor_names(file))
    model = AlignedModel(student, uni_modal=has_uni_heads)
    if parameters.student.weights and frozen_parameters({"model": model}) and "frozen" in record:
        begin_with(model, Path(parameters.student.weights))
    load_checkpoint(file, {"model": model})
    return Trained(model=model, parameters=parameters, record=record)


def _with_kept_files(settings: Student, folder: Path) -> Student:
    """Return the settings of a run's student with the files that the run keeps in its folder, as far as it does."""
    if settings.model.startswith(SGRAF):
        from models.sgraf.student import with_kept_vocabulary

        return replace(settings, sgraf=with_kept_vocabulary(settings.sgraf, folder))
    return settings


def run_path(spec: str) -> Path | None:
    """Return the run's folder or the checkpoint that a model's name stands for; None where it is another one's.

    Raises:
        StudentError: it is a path, and there is no such run.
    """
    path = Path(spec.removeprefix(RUN))
    # The weights of a published one may be a file in safetensors too.
    is_run = not spec.startswith(PUBLISHED) and (path.is_dir() or path.suffix == ".safetensors")
    if not is_run and (spec.startswith(RUN) or (os.sep in spec and ":" not in spec)):
        raise StudentError(
            f"{spec} is no run and no checkpoint: there is no such folder, and it does not end in .safetensors. A "
            f"model is the folder of a run (cusa-train --run), a checkpoint in it, open-clip:<model>/<pretrained tag "
            f"or file>, x2vlm:<weights file>, blip:<name or folder>, or a teacher (family:name)."
        )
    return path if is_run else None


def load_aligned(spec: str) -> AlignedModel:
    """Load a student by name: a run's folder, a checkpoint, or any student as it is published.

    Raises:
        CusaError: there is none of that name, or it cannot be loaded.
    """
    path = run_path(spec)
    return load_trained(path).model if path else load_published(spec)


def load_published(spec: str) -> AlignedModel:
    """Load a student as it is published, its own embeddings standing where ours pass through heads."""
    if spec.startswith(("open-clip:", "sgraf:")) and "/" not in spec:
        raise StudentError(f"{spec} names no weights, and random ones are not measured. Add /<pretrained tag or file>.")
    aligned = AlignedModel(load_student(Student(model=spec)), uni_modal=False)
    aligned.heads.clear()
    return aligned
