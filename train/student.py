"""Students: the retrieval models to train, by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import open_clip
from PIL import Image
from torch import Tensor, nn

import train.small_conv  # noqa: F401 — registers the embedded student's tower with timm
from stores.errors import StudentError
from stores.plugins import import_factory
from train.losses import cosine_similarity

SMALL_CLIP: Final = Path(__file__).with_name("small-clip.json")
"""The embedded student's configuration, in open_clip's format; its image tower is `train.small_conv`."""

Transform = Callable[[Image.Image], Tensor]


@runtime_checkable
class Student(Protocol):
    """What a model needs to be trained here; it is a torch module as well.

    Shapes: N batch, D = `embed_dim`.
    """

    embed_dim: int
    train_transform: Transform
    """RGB PIL image to (3, S, S) tensor, for training; augments where the student wants it."""
    eval_transform: Transform
    """RGB PIL image to (3, S, S) tensor, for measuring."""
    tokenizer: Callable[[list[str]], Tensor]
    """Texts to (N, length) integers."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the (N, D) embeddings of (N, 3, S, S) images."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the (N, D) embeddings of (N, length) tokens."""

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the (N, M) similarities of image embeddings with text embeddings."""


class OpenClipStudent(nn.Module):
    """Any open_clip model, with cosine similarity and no augmentation."""

    def __init__(self, name: str, pretrained: str | None) -> None:
        super().__init__()
        self.model, _, self.eval_transform = _create(name, pretrained)
        self.train_transform = self.eval_transform
        self.tokenizer = open_clip.get_tokenizer(name)
        self.embed_dim = int(open_clip.get_model_config(name)["embed_dim"])
        # Our own temperatures stand in for CLIP's scale and bias: no gradient would ever reach them.
        for parameter in ("logit_scale", "logit_bias"):
            if isinstance(getattr(self.model, parameter, None), nn.Parameter):
                getattr(self.model, parameter).requires_grad_(False)

    def encode_image(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_image(images)
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_text(tokens)
        return embedding

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return cosine_similarity(images, texts)


def load_student(spec: str) -> Student:
    """Load the student that `spec` names: `open-clip:<model>[/<pretrained tag or file>]` or `package.module:factory`.

    A factory is called without arguments and returns a torch module that is a `Student`.

    Raises:
        StudentError: there is no such student, or it cannot be loaded.
    """
    family, _, name = spec.partition(":")
    if family == "open-clip":
        model, _, pretrained = name.partition("/")
        return OpenClipStudent(model, pretrained or None)
    if not re.fullmatch(r"[\w.]+:\w+", spec):
        raise StudentError(
            f"No student is called {spec!r}. Expected open-clip:<model>[/<pretrained tag or file>] "
            f"or package.module:factory."
        )
    student = import_factory(spec, StudentError)()
    if not isinstance(student, nn.Module) or not isinstance(student, Student):
        members = ", ".join(sorted(getattr(Student, "__protocol_attrs__", ())))
        raise StudentError(f"{spec} returned a {type(student).__name__}; a student is a torch module with {members}.")
    return student


def _create(name: str, pretrained: str | None) -> Any:
    open_clip.add_model_config(SMALL_CLIP)
    if name not in open_clip.list_models():
        raise StudentError(f"open_clip knows no model {name!r}. It knows {', '.join(open_clip.list_models()[:8])}, … .")
    try:
        # open_clip warns of random weights; here they are asked for by leaving the weights out.
        logging.disable(logging.NOTSET if pretrained else logging.WARNING)
        return open_clip.create_model_and_transforms(name, pretrained=pretrained, weights_only=True)
    except Exception as error:  # torch, safetensors and open_clip have no common base for a bad file
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise StudentError(
            f"The student {name} with the weights {pretrained!r} could not be loaded: {str(error)[:400]} "
            f"The weights are a file or one of open_clip's tags ({tags})."
        ) from None
    finally:
        logging.disable(logging.NOTSET)
