"""What a teacher is: a frozen model of one modality that turns inputs into features.

Shapes: B batch, D the teacher's feature size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from stores.digests import value_digest
from stores.layout import teacher_slug
from stores.manifest import Modality

MIN_COSINE: Final = 0.999
"""How near bf16 features must stay to fp32 ones."""


class Teacher(ABC):
    """A frozen teacher. A user's own derives from this and is named `package.module:factory`.

    `fingerprint` covers whatever changes the features: the spec, the weights, the preprocessing and the precision.
    """

    modality: Modality

    def __init__(
        self, *, spec: str, dim: int, precision: Literal["fp32", "bf16"], device: torch.device, identity: Any
    ) -> None:
        self.spec = spec
        self.dim = dim
        self.precision = precision
        self.device = device
        self.slug = teacher_slug(spec)
        self.fingerprint = value_digest([spec, precision, identity])

    @abstractmethod
    def preprocess(self, item: Any) -> Any:
        """Turn one input (an RGB PIL image, or a text) into what `collate` stacks; runs beside the model."""

    def collate(self, items: list[Any]) -> Any:
        """Make a batch of preprocessed items: for images a stacked tensor."""
        return torch.stack(items)

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return the features of a batch, (B, D), on the teacher's device."""

    def encode(self, batch: Any, precision: Literal["fp32", "bf16"] | None = None) -> Tensor:
        """Return the features of a batch: (B, D) float32, not normalised."""
        use_bf16 = (precision or self.precision) == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16):
            return self.forward(batch).float()

    def precision_cosine(self, batch: Any) -> float:
        """Return the smallest cosine similarity between a batch's features in this precision and in fp32."""
        if self.precision == "fp32":
            return 1.0
        exact = self.encode(batch, "fp32")
        return float(nn.functional.cosine_similarity(self.encode(batch), exact).min())


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 over a module's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
