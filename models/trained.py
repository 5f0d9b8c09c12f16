"""A trained run, loaded: the student of a checkpoint with the heads that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from models.aligned import AlignedModel
from models.checkpoint import load_checkpoint, read_record, tensor_names
from models.students import load_student
from stores.errors import TrainingError
from stores.parameter_loading import recorded_parameters
from stores.parameters import TrainParameters

BEST: Final = "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, and what its checkpoint recorded of the training."""

    model: AlignedModel
    parameters: TrainParameters
    record: Mapping[str, Any]


def checkpoint_file(path: Path) -> Path:
    """Return the file of a run's folder (its best checkpoint), or the file itself."""
    return path / BEST if path.is_dir() else path


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
    student = load_student(replace(parameters.student, freeze=freeze, gradient_checkpointing=False))
    has_uni_heads = any(name.startswith("model.uni_heads.") for name in tensor_names(file))
    model = AlignedModel(student, uni_modal=has_uni_heads)
    load_checkpoint(file, {"model": model})
    return Trained(model=model, parameters=parameters, record=record)
