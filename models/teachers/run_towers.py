"""A trained run as a teacher of images or of texts: `run:<folder>`, or `run:<folder>@uni` for its uni-modal heads.

Both towers of a run lie in one space, so its texts search images and the other way round.

Shapes: B batch, D the student's embedding size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from PIL import Image
from torch import Tensor

from models.encoded import moved
from models.inputs import Input, Pixels, Tokens
from models.loading import weights_digest
from models.teachers.teacher import Teacher, TextTeacher
from models.trained import RUN, Trained, checkpoint_file, load_trained
from stores.digests import file_state
from stores.errors import TeacherError
from stores.hardware import ComputePrecision

UNI: Final = "@uni"
_IN_USE: Final[WeakValueDictionary[tuple[Any, ...], Trained]] = WeakValueDictionary()
Kind = TypeVar("Kind", bound=Input)


def run_teacher(name: str, device: torch.device, precision: ComputePrecision, modality: str) -> Teacher:
    """Return the tower for `modality` of the run `name`: a folder or a checkpoint file, perhaps with `@uni`.

    Raises:
        TrainingError: there is no such run.
        TeacherError: it has no uni-modal heads, or no tower that takes such items.
    """
    trained, spec = _shared(Path(name.removesuffix(UNI)), device), f"{RUN}{name}"
    if name.endswith(UNI) and not trained.model.uni_heads:
        raise TeacherError("has no uni-modal heads", where=spec, advice=f"Leave {UNI} out.")
    kind = RunImages if modality == "image" else RunTexts
    return kind(trained, spec, device, precision)


def _shared(path: Path, device: torch.device) -> Trained:
    """Load a run for a device; the towers of one that are in use share its weights, which lie there once."""
    file = checkpoint_file(path)
    key = (str(file.resolve()), file_state(file), str(device))
    trained = _IN_USE.get(key)
    if trained is None:
        trained = _IN_USE[key] = load_trained(path)
    return trained


class RunTower(Teacher, Generic[Kind]):
    """One tower of a trained run, with one of its two heads."""

    kind: type[Kind]
    """Of the input that it encodes."""

    def __init__(self, trained: Trained, spec: str, device: torch.device, precision: ComputePrecision) -> None:
        self._is_uni = spec.endswith(UNI)
        identity = [weights_digest(trained.model), trained.record.get("parameters", {}).get("student"), self._is_uni]
        self._trained, self._model = trained, trained.model.eval().to(device)
        dim = self._model.interface.embed_dim
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)
        self._input: Kind = self._checked_input()

    def forward(self, batch: Any) -> Tensor:
        encoded = self._model.encode(self.modality, moved(batch, self.device))
        return encoded.unimodal if self._is_uni else encoded.vector

    def _checked_input(self) -> Kind:
        given = self._model.interface.inputs.get(self.modality)
        if not isinstance(given, self.kind):
            found = None if given is None else type(given).__name__
            advice = "Its features are of the store that it was trained on, and it can encode nothing else."
            raise TeacherError(
                f"its {self.modality} input", where=self.spec, found=found, expected=self.kind.__name__, advice=advice
            )
        return given


class RunImages(RunTower[Pixels]):
    """The image tower."""

    modality = "image"
    kind = Pixels

    def __init__(self, trained: Trained, spec: str, device: torch.device, precision: ComputePrecision) -> None:
        super().__init__(trained, spec, device, precision)
        self.decodes_in_threads = self._input.prepare.decodes_in_threads

    def preprocess(self, item: Image.Image) -> Tensor:
        """Apply the student's transform for measuring."""
        return self._input.prepare.transform(item)

    def preprocess_file(self, data: bytes) -> Tensor:
        return self._input.prepare(data)


class RunTexts(RunTower[Tokens], TextTeacher):
    """The text tower."""

    kind = Tokens

    def prepare(self, items: list[str]) -> list[Any]:
        return self._input.tokens(items) if items else []

    def collate(self, items: list[Tensor]) -> Any:
        """Return (B, longest) tokens with their mask."""
        return self._input.collate(items)
