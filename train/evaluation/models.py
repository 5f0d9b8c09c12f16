"""The models that can be measured: a checkpoint of ours, any open_clip model, or a teacher.

Each gives uni-modal embeddings of images, texts or both. What is measured across modalities needs both in one space:
`StudentModel.aligned` is an `AlignedModel`, for checkpoints and open_clip models alike.

Shapes: n inputs, D the model's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.aligned import AlignedModel
from models.encoded import moved
from models.inputs import Pixels, Tokens
from models.teachers import Teacher, load_teacher
from models.trained import PUBLISHED, load_published, load_trained, run_path
from stores.errors import CusaError, StudentError
from stores.hardware import ComputePrecision, resolve_device, resolve_precision
from stores.parameters import Precision, TrainParameters

T = TypeVar("T")


class StudentModel:
    """A student with its heads, where it was trained here; uni-modal tasks see its uni-modal heads.

    `parameters` and `temperatures` are those of that training, as its checkpoint recorded them; None of a model from
    elsewhere.
    """

    modalities: tuple[str, ...]
    """What it embeds; the methods for another modality are not called (see `require`)."""

    def __init__(
        self,
        name: str,
        aligned: AlignedModel,
        parameters: TrainParameters | None = None,
        temperatures: dict[str, float] | None = None,
        *,
        device: torch.device,
        precision: ComputePrecision,
    ) -> None:
        self.name, self.device, self.precision = name, device, precision
        self.parameters, self.temperatures = parameters, temperatures
        self.aligned = aligned.eval().to(device)
        self.modalities: tuple[str, ...] = aligned.modalities

    def prepare_image(self, data: bytes) -> Tensor:
        """Return an image file as the model takes it, (3, S, S); called from threads.

        Raises:
            DecodingError: the bytes are no image, or a truncated one.
        """
        return self._input("image", Pixels).prepare(data)

    def encode_images(self, prepared: list[Tensor]) -> NDArray[np.float32]:
        """Return the uni-modal embeddings of a batch of prepared images: (n, D), not normalised."""
        with torch.inference_mode(), self._autocast():
            return _array(self.aligned.encode("image", torch.stack(prepared).to(self.device)).unimodal)

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the uni-modal embeddings of a batch of texts: (n, D), not normalised."""
        with torch.inference_mode(), self._autocast():
            tensors = moved(self._input("text", Tokens).texts(texts), self.device)
            return _array(self.aligned.encode("text", tensors).unimodal)

    def _input(self, modality: str, kind: type[T]) -> T:
        given = self.aligned.interface.inputs.get(modality)
        if not isinstance(given, kind):
            raise CusaError(
                f"The model {self.name} takes {modality}s as {type(given).__name__}, not as {kind.__name__}: it can be "
                f"measured on a store alone, not on {modality} files."
            )
        return given

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class TeacherModel:
    """A teacher, which embeds one modality; its methods are those of a student."""

    def __init__(self, name: str, teacher: Teacher) -> None:
        self.name, self._teacher = name, teacher
        self.modality, self.fingerprint = teacher.modality, teacher.fingerprint
        self.modalities: tuple[str, ...] = (teacher.modality,)

    def prepare_image(self, data: bytes) -> Tensor:
        prepared: Tensor = self._teacher.preprocess_file(data)
        return prepared

    def encode_images(self, prepared: list[Tensor]) -> NDArray[np.float32]:
        return _array(self._teacher.encode(self._teacher.collate(prepared)))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return _array(self._teacher.encode(self._teacher.collate(self._teacher.prepare(texts))))


@dataclass(frozen=True)
class EnsembleModel:
    """Several students, of which each pair's score is the mean; together they embed nothing."""

    name: str
    members: tuple[StudentModel, ...]


MeasuredModel = StudentModel | TeacherModel
"""A model that embeds by itself."""


def load_model(
    spec: str, weights: str | None = None, device: str = "auto", precision: Precision = "auto"
) -> MeasuredModel | EnsembleModel:
    """Load the model to measure that `spec` names.

    Args:
        spec: a run's folder or a checkpoint file of cusa-train, with or without `run:` before it,
            `open-clip:<model>/<pretrained tag or file>`, `x2vlm:<weights file>`, `blip:<name or folder>`, or a teacher:
            `family:name`; several students with + between them are an ensemble.
        weights: a teacher's weights file, where its name does not say.
        device: "auto", or as torch names it.
        precision: "auto" is bf16 where the hardware has it.

    Raises:
        CusaError: there is no such model, or it cannot be loaded; or weights are given that it does not take.
    """
    if len(_members(spec)) > 1:
        return _ensemble(spec, device, precision)
    where = resolve_device(device)
    how = resolve_precision(precision, where)
    path, is_published = run_path(spec), spec.startswith(PUBLISHED)
    if weights is not None and (path or is_published):
        raise StudentError(f"The model {spec} takes no separate weights, but {weights} was given. Leave them out.")
    if path:
        return StudentModel(spec, *_trained(path), device=where, precision=how)
    if is_published:
        return StudentModel(spec, load_published(spec), device=where, precision=how)
    return TeacherModel(spec, load_teacher(spec, weights, device, precision))


def require(model: MeasuredModel, modality: str, task: str) -> None:
    """Raise a `CusaError` unless the model embeds `modality`, as `task` needs."""
    if modality not in model.modalities:
        raise CusaError(
            f"The model {model.name} embeds {'s and '.join(model.modalities)}s; the task {task} needs one of "
            f"{modality}s. Leave the task out, or name another model."
        )


def check_embeddings(embeddings: NDArray[np.float32], count: int, name: str) -> NDArray[np.float32]:
    """Return the embeddings of `count` inputs if they are (count, D) and finite.

    Raises:
        CusaError: they are not; `name` is the model's.
    """
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise CusaError(
            f"The model {name} gave the shape {embeddings.shape} for {count} inputs, expected ({count}, D)."
        )
    if not np.isfinite(embeddings).all():
        raise CusaError(f"The model {name} gave embeddings that are not finite; it cannot be measured.")
    return embeddings


def _trained(path: Path) -> tuple[AlignedModel, TrainParameters | None, dict[str, float] | None]:
    """Load a run or checkpoint with its training's parameters and temperatures; None where it does not tell."""
    trained = load_trained(path)
    told = {"loss", "teachers"} <= trained.record.get("parameters", {}).keys()
    return trained.model, trained.parameters if told else None, trained.record.get("temperatures")


def _ensemble(spec: str, device: str, precision: Precision) -> EnsembleModel:
    members = tuple(load_model(one, None, device, precision) for one in _members(spec))
    students = tuple(one for one in members if isinstance(one, StudentModel))
    if len(students) < len(members):
        raise StudentError(found=spec, expected="students with + between them", advice="A teacher has no scores.")
    return EnsembleModel(spec, students)


def _members(spec: str) -> list[str]:
    """Return the members of an ensemble; of a name with plus signs that is there as a path they are part."""
    pieces, found = spec.split("+"), list[str]()
    while pieces:
        paths = ("+".join(pieces[:count]).removeprefix("run:") for count in range(len(pieces), 0, -1))
        count = next((len(pieces) - number for number, path in enumerate(paths) if Path(path).exists()), 1)
        found.append("+".join(pieces[:count]))
        del pieces[:count]
    return found


def _array(embeddings: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = embeddings.float().cpu().numpy()
    return array
