"""A student with what soft-label alignment puts around it: projection heads and learned temperatures.

Shapes: N batch, D the student's embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from models.student import Student
from models.temperatures import Taus, Temperatures
from stores.parameters import Loss


class Embeddings(NamedTuple):
    """What the model makes of a batch: (N, D) each, not normalised."""

    image: Tensor
    text: Tensor
    uni_image: Tensor
    uni_text: Tensor


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
    """A student, a cross-modal and a uni-modal head for each modality, and the temperatures.

    Without USA nothing would teach the uni-modal heads: there are none, and the cross-modal embeddings, which are all
    that the model has, stand in for theirs.
    """

    def __init__(self, student: Student, *, uni_modal: bool = True) -> None:
        super().__init__()
        self.student = student
        self.image_head = Head(student.embed_dim)
        self.text_head = Head(student.embed_dim)
        self.uni_image_head = Head(student.embed_dim) if uni_modal else None
        self.uni_text_head = Head(student.embed_dim) if uni_modal else None
        self.temperatures = Temperatures()

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Embeddings, Taus]:
        """Embed a batch of images and of tokenised texts; give the temperatures as well.

        They come along so that a wrapper for several processes sees every parameter used in one forward pass.
        """
        image, uni_image = self.embed_images(images)
        text, uni_text = self.embed_texts(tokens)
        return Embeddings(image, text, uni_image, uni_text), self.temperatures()

    @property
    def similarity(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The student's own similarity of images with texts; None: the cosine."""
        return getattr(self.student, "similarity", None)

    def freeze_unused_temperatures(self, loss: Loss) -> None:
        """Freeze the temperatures that no part of the loss reaches, which no process must wait for."""
        idle: list[nn.Module] = []
        if not loss.alpha:
            idle += [self.temperatures.cross]
        if not loss.beta:
            idle += [self.temperatures.image, self.temperatures.text]
        for module in idle:
            module.requires_grad_(False)

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-modal and the uni-modal embedding of images."""
        return _both(self.student.encode_image(images), self.image_head, self.uni_image_head)

    def embed_texts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-modal and the uni-modal embedding of tokenised texts."""
        return _both(self.student.encode_text(tokens), self.text_head, self.uni_text_head)


def _both(embedding: Tensor, cross: nn.Module, uni: nn.Module | None) -> tuple[Tensor, Tensor]:
    across = cross(embedding)
    return across, across if uni is None else uni(embedding)
