"""What a teacher is: a frozen model of one modality that turns inputs into features.

Shapes: B batch, D the numbers of a feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from stores.digests import value_digest
from stores.errors import TeacherError
from stores.hardware import ComputePrecision
from stores.images import DECODING, decode_rgb
from stores.modality import LEVELS, Level

MIN_COSINE: Final = 0.999
"""How near bf16 features must stay to fp32 ones."""


class Teacher(ABC):
    """A frozen teacher. A user's own derives from this and is named `package.module:factory`.

    `spec` is the name that it was loaded by, whatever it was made with (`load_teacher`).
    `fingerprint` covers whatever changes the features: the spec, the weights, the preprocessing and the precision.
    """

    modality: str
    """image or text."""
    unit: bool = True
    """Whether a feature is a vector, of which the direction alone counts: the store holds it at length one."""
    decodes_in_threads: bool = False
    """Whether `preprocess_file` leaves Python to others for most of its time, so that threads do it side by side."""

    def __init__(
        self, *, spec: str, dim: int, precision: ComputePrecision, device: torch.device, identity: Any
    ) -> None:
        self.spec = spec
        self.dim = dim
        self.shape: tuple[int, ...] = (dim,)
        """Of a feature, as the store holds it: `dim` numbers in all."""
        self.precision = precision
        self.device = device
        decoding = DECODING if self.modality == "image" else None
        self.fingerprint = value_digest([spec, precision, identity, decoding])
        self.backed_off = False
        """Whether a batch was ever too large for the memory; it is said the first time."""

    @property
    def level(self) -> Level:
        """Which rows of a store it encodes."""
        return LEVELS[self.modality]

    @abstractmethod
    def preprocess(self, item: Any) -> Any:
        """Turn one input (an RGB PIL image, or a text) into what `collate` stacks; runs beside the model."""

    def preprocess_file(self, data: bytes) -> Any:
        """Return what `preprocess` makes of an image file.

        Raises:
            DecodingError: the bytes are no image, or a truncated one.
        """
        return self.preprocess(decode_rgb(data))

    def prepare(self, items: list[Any]) -> list[Any]:
        """Preprocess many inputs at once; a text teacher tokenises them together."""
        return [self.preprocess(item) for item in items]

    def length(self, prepared: Any) -> int:
        """Return the length of a preprocessed item, in tokens: batches are made of items of like length."""
        return 0

    def collate(self, items: list[Any]) -> Any:
        """Make a batch of preprocessed items: for images a stacked tensor, for texts padded to the longest."""
        return torch.stack(items)

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return the features of a batch, (B, D), on the teacher's device."""

    def encode(self, batch: Any, precision: ComputePrecision | None = None) -> Tensor:
        """Return the features of a batch: (B, D) float32, not normalised."""
        use_bf16 = (precision or self.precision) == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16):
            return self.forward(batch).float()


class TextTeacher(Teacher):
    """A teacher that tokenises many texts at once, each to its tokens: (L,) or (…, L)."""

    modality = "text"

    def preprocess(self, item: str) -> Any:
        return self.prepare([item])[0]

    def length(self, prepared: Any) -> int:
        return int(prepared.shape[-1])


def feature_dim(forward: Callable[[Tensor], Tensor], example: Tensor, spec: str) -> int:
    """Return the size D of the features of a batch of one.

    Raises:
        TeacherError: the model gives something else than one vector an input.
    """
    with torch.inference_mode():
        features = forward(example)
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = f"the shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise TeacherError(f"{spec} gives {found} for one input, expected (1, D): one vector. It cannot be a teacher.")
    return features.shape[1]
