"""A student with the projection heads that soft-label alignment puts around it.

Shapes: n items, D the student's embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from models.encoded import Encoded
from models.inputs import Tensors
from models.scoring import Scorer
from models.students import Student, StudentOfTwoTowers, as_student


class Head(nn.Sequential):
    """LayerNorm, then Linear D→D (CUSA, appendix).

    The linear layer starts as the identity, so that a pretrained student starts out with the similarities it has.
    """

    def __init__(self, dim: int) -> None:
        linear = nn.Linear(dim, dim)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.LayerNorm(dim), linear)


class AlignedModel(nn.Module):
    """A student, and for each modality a cross-modal and a uni-modal head.

    Cross-modal heads are for students of two towers; one that says itself how it encodes has projections of its own.
    Without a loss among the items of one modality nothing would teach the uni-modal heads: there are none, and the
    vectors, which are all that the model has, stand in for theirs.
    """

    interface: Student
    """The student by its full interface."""

    def __init__(self, student: Any, *, uni_modal: bool = True) -> None:
        super().__init__()
        self.student = student
        # Beside torch's registration: a student that is its own interface would be registered twice.
        self.__dict__["interface"] = as_student(student)
        modalities, dim = list(self.interface.inputs), self.interface.embed_dim
        crossed: list[str] = modalities if isinstance(self.interface, StudentOfTwoTowers) else []
        self.heads = nn.ModuleDict({modality: Head(dim) for modality in crossed})
        uni_head: Callable[[int], nn.Module] = getattr(student, "uni_head", Head)
        self.uni_heads = nn.ModuleDict({modality: uni_head(dim) for modality in modalities if uni_modal})

    def forward(self, inputs: Mapping[str, Tensors]) -> dict[str, Encoded]:
        """Encode a batch: n items of each modality."""
        return {modality: self.encode(modality, tensors) for modality, tensors in inputs.items()}

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode n items of one modality."""
        encoded = self.interface.encode(modality, tensors)
        vector = encoded.vector
        crossed = self.heads[modality](vector) if modality in self.heads else vector
        uni = self.uni_heads[modality](vector) if modality in self.uni_heads else encoded.uni
        # Named by its class: torch.compile cannot make what `_replace` does.
        return Encoded(crossed, uni, encoded.parts, encoded.mask, encoded.shared)

    @property
    def scorer(self) -> Scorer:
        """How items of two modalities are compared."""
        return self.interface.scorer

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in the order that the scorer takes them in."""
        return tuple(self.interface.inputs)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device
