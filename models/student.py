"""Students: the retrieval models to train, by name, with towers frozen and activations checkpointed as asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

from PIL import Image
from torch import Tensor, nn

from stores import parameters
from stores.errors import StudentError
from stores.plugins import import_factory

Transform = Callable[[Image.Image], Tensor]
Parts = Sequence[nn.Module | nn.Parameter]


class Student(Protocol):
    """What a model needs to be trained here; it is a torch module as well. docs/students.md has an example.

    Shapes: N images, M texts, D = `embed_dim`.

    Three members more are looked for where they are needed:

    - `similarity(images (N, D), texts (M, D)) -> (N, M)`; without it embeddings are compared by their cosine.
    - `towers`: `{"image": [...], "text": [...]}`, the modules and parameters of each, for `student.freeze`.
    - `set_grad_checkpointing()`, for `student.gradient_checkpointing`.
    """

    embed_dim: int
    train_transform: Transform
    """RGB PIL image to (3, S, S) tensor, for training with `train.augment`."""
    eval_transform: Transform
    """RGB PIL image to (3, S, S) tensor, for measuring, and for training without `train.augment`."""
    tokenizer: Callable[[list[str]], Tensor]
    """Texts to (M, length) integers; the length is the same for every batch."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the (N, D) embeddings of (N, 3, S, S) images."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the (M, D) embeddings of (M, length) tokens."""


MEMBERS: Final = (*Student.__annotations__, "encode_image", "encode_text")


def load_student(settings: parameters.Student) -> Student:
    """Load a student, with its towers frozen and gradient checkpointing on as the settings say.

    A frozen tower learns nothing and stays in evaluation mode, with its dropout off and its batch statistics as they
    are, whoever calls `train()`.

    Args:
        settings: `model` is `open-clip:<model>[/<pretrained tag or file>]`, or `package.module:factory`: a factory is
            called without arguments and returns a torch module that is a `Student`.

    Raises:
        StudentError: there is no such student, or it cannot be loaded, or lacks what the settings ask for.
    """
    student = _load(settings.model)
    for tower in settings.freeze:
        for part in _parts(student, tower, settings.model):
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                _keep_in_eval(part)
    if settings.gradient_checkpointing:
        switch_on = getattr(student, "set_grad_checkpointing", None)
        if not callable(switch_on):
            raise StudentError(
                f"{settings.model} has no method set_grad_checkpointing(), which student.gradient_checkpointing needs. "
                f"Add one (docs/students.md), or leave that parameter out."
            )
        switch_on()
    return student


def _load(spec: str) -> Student:
    family, _, name = spec.partition(":")
    if family == "open-clip":
        # Imported when it is asked for: open_clip takes seconds to load.
        from models.open_clip_student import OpenClipStudent

        model, _, pretrained = name.partition("/")
        return OpenClipStudent(model, pretrained or None)
    if not re.fullmatch(r"[\w.]+:\w+", spec):
        raise StudentError(
            f"No student is called {spec!r}. Expected open-clip:<model>[/<pretrained tag or file>] "
            f"or package.module:factory."
        )
    student: Any = import_factory(spec, StudentError)()
    missing = [member for member in MEMBERS if not hasattr(student, member)]
    if missing or not isinstance(student, nn.Module):
        fault = f"lacks {', '.join(missing)}" if isinstance(student, nn.Module) else "is not a torch module"
        raise StudentError(
            f"{spec} returned a {type(student).__name__}, which {fault}. A student is a torch module with "
            f"{', '.join(MEMBERS)} (docs/students.md)."
        )
    return cast(Student, student)


def _parts(student: Student, tower: str, spec: str) -> Parts:
    towers = getattr(student, "towers", None)
    parts = towers.get(tower) if isinstance(towers, Mapping) else None
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(p, nn.Module | nn.Parameter) for p in parts):
        raise StudentError(
            f"{spec} does not say what its {tower} tower is, so student.freeze=[{tower}] cannot freeze it. Expected "
            f"`towers`, such as {{'image': [modules and parameters], 'text': […]}} (docs/students.md)."
        )
    return parts


def _keep_in_eval(module: nn.Module) -> None:
    module.eval()
    # Every train() of the student or of what holds it comes by here.
    module.train = partial(_unchanged, module)  # type: ignore[method-assign]


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
