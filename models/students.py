"""Students: the retrieval models to train, by name, with towers frozen and activations checkpointed as asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, cast

from torch import Tensor, nn

from models.encoded import Encoded
from models.inputs import Input, Padded, Pixels, Tensors, Tokens
from models.loading import keep_in_eval
from models.preprocessing import Transform
from models.scoring import Cosine, OwnSimilarity, Scorer
from stores import Store, parameters
from stores.commands import loading
from stores.errors import StudentError
from stores.plugins import made_by_factory

Parts = Sequence[nn.Module | nn.Parameter]
Halves = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Any]]


class Student(Protocol):
    """What a model needs to be trained here; it is a torch module as well. docs/students.md has examples.

    Shapes: n items, D = `embed_dim`.

    Four members more are looked for where they are needed:

    - `towers`: by modality, such as `{"image": [...], "text": [...]}`, the modules and parameters of each, for
      `student.freeze`.
    - `set_grad_checkpointing()`, for `student.gradient_checkpointing`.
    - `matching_parts`: the modules and parameters that `match` alone needs; without a term that matches they do not
      learn.
    - `uni_head(dim)`: makes the module that takes a modality's vectors to uni-modal tasks; without it, LayerNorm and a
      linear layer.
    """

    embed_dim: int
    inputs: Mapping[str, Input]
    """How each modality is loaded, by its name, in the order that the scorer takes them in."""
    scorer: Scorer
    """How items of two modalities are compared."""

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode n items of a modality, as its input made them; `vector` is (n, D)."""


class TwoTowers(Protocol):
    """The shorter form of a student that makes one vector of an image and one of a text; a torch module as well.

    Shapes: N images, M texts, D = `embed_dim`.

    Beside those of `Student`, three members more are looked for:

    - `similarity(images (N, D), texts (M, D)) -> (N, M)`; without it embeddings are compared by their cosine.
    - `padding`: the token that fills the end of a text; with it the texts of a batch come as long as its longest.
    - `halves`: by modality, what `student.freeze` freezes, (N, …) inputs to (N, …) outputs, and what still learns after
      it, those to (N, D). A frozen half's outputs are computed once.
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


class HalvedStudent:
    """A student that tells its towers' halves: what a frozen half makes of an item is then computed once."""

    def __init__(self, inputs: dict[str, Input], halves: Mapping[str, Halves]) -> None:
        """By modality, `halves` are what `student.freeze` freezes, and what still learns after it."""
        self.inputs, self.halves = inputs, halves
        self._reads_outputs: set[str] = set()

    def frozen_half(self, modality: str, tensors: Tensors) -> Tensor:
        """Return what the first half of a tower makes of n items: (n, …)."""
        return self.halves[modality][0](_values(tensors))

    def read_outputs(self, modality: str, given: Input) -> None:
        """Take a modality's items from now on as what the first half of their tower made of them."""
        self.inputs[modality] = given
        self._reads_outputs.add(modality)

    def second_half(self, modality: str, tensors: Tensors) -> Any:
        """Return what the second half makes of n items, which are given as it reads them."""
        given = _values(tensors) if modality in self._reads_outputs else self.frozen_half(modality, tensors)
        return self.halves[modality][1](given)


class StudentOfTwoTowers(HalvedStudent):
    """A `TwoTowers` as a `Student`. It is no module: its parameters stay those of the model under their own names."""

    def __init__(self, towers: TwoTowers) -> None:
        self._towers, self.embed_dim = towers, towers.embed_dim
        inputs = {
            "image": Pixels(towers.eval_transform, towers.train_transform),
            "text": Tokens(towers.tokenizer, getattr(towers, "padding", None)),
        }
        super().__init__(inputs, getattr(towers, "halves", {}))
        similarity = getattr(towers, "similarity", None)
        self.scorer: Scorer = Cosine() if similarity is None else OwnSimilarity(similarity)

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        if modality in self._reads_outputs:
            return Encoded(self.second_half(modality, tensors))
        if isinstance(tensors, Padded):
            return Encoded(self._towers.encode_text(tensors.values))
        return Encoded(self._towers.encode_image(tensors))


def _values(tensors: Tensors) -> Tensor:
    return tensors.values if isinstance(tensors, Padded) else tensors


def parameters_of(parts: Parts) -> Iterator[nn.Parameter]:
    """Yield the parameters of modules, and those that are named themselves."""
    for part in parts:
        yield from part.parameters() if isinstance(part, nn.Module) else [part]


MEMBERS: Final = (*Student.__annotations__, "encode")
HEADS: Final = "heads"
SGRAF: Final = "sgraf:"
MAXMATCH: Final = "maxmatch:"
TWO_TOWERS: Final = (*TwoTowers.__annotations__, "encode_image", "encode_text")


def as_student(model: Any) -> Student:
    """Return a loaded student by its full interface."""
    return cast(Student, model if hasattr(model, "encode") else StudentOfTwoTowers(model))


def load_student(settings: parameters.Student) -> Any:
    """Load a student, with its towers frozen and gradient checkpointing on as the settings say.

    A frozen tower learns nothing and stays in evaluation mode, with its dropout off and its batch statistics as they
    are, whoever calls `train()`.

    Args:
        settings: `model` is of one of `FAMILIES`, or `package.module:factory`: a factory is called without arguments
            and returns a torch module that is a `Student` or a `TwoTowers`.

    Raises:
        StudentError: there is no such student, or it cannot be loaded, or lacks what the settings ask for.
    """
    if settings.heads and not settings.model.startswith((HEADS, MAXMATCH)):
        expected = f"none: {settings.model} has no heads of its own modalities; those of student.model: {HEADS} are"
        raise StudentError(where="student.heads", found=", ".join(settings.heads), expected=expected)
    student = _load(settings.model, settings)
    for tower in settings.freeze:
        for part in _parts(student, tower, settings.model):
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                keep_in_eval(part)
    if settings.gradient_checkpointing:
        switch_on = getattr(student, "set_grad_checkpointing", None)
        if not callable(switch_on):
            raise StudentError(
                f"{settings.model} has no method set_grad_checkpointing(), which student.gradient_checkpointing needs. "
                f"Add one (docs/students.md), or leave that parameter out."
            )
        switch_on()
    return student


def with_features(settings: parameters.Student, store: Store) -> parameters.Student:
    """Return the settings of a student with what the store says of the features that it reads.

    Raises:
        StoreError: the store has no such features.
        StudentError: they are others than the settings name, or than the student takes.
    """
    if settings.model.startswith(SGRAF):
        from models.sgraf.student import with_regions

        return replace(settings, sgraf=with_regions(settings.sgraf, store))
    from models.heads import with_widths

    return with_widths(settings, store)


_TWO_ENCODERS: Final = "<image encoder>+<text encoder>[@<dimensions>]"
FAMILIES: Final = {
    "open-clip": "<model>[/<pretrained tag or file>]",
    "towers": _TWO_ENCODERS,
    "maxmatch": _TWO_ENCODERS,
    "sgraf": "<SGR or SAF>[/<file>]",
    "x2vlm": "<weights file>",
    "blip": "<hub name or folder>",
    HEADS: "",
}
"""What a student's name goes on with after its family's and a colon, for people; "": the settings say it all."""


def _load(spec: str, settings: parameters.Student) -> Any:
    family, colon, name = spec.partition(":")
    # Each family is imported when it is asked for: some libraries take seconds to load.
    match family, bool(colon):
        case "open-clip", True:
            with loading():
                from models.open_clip_student import OpenClipStudent

            model, _, pretrained = name.partition("/")
            return OpenClipStudent(model, pretrained or None)
        case "towers", True:
            from models.two_encoders import two_encoders

            return two_encoders(name)
        case "maxmatch", True:
            from models.maxmatch import max_match

            return max_match(name, settings)
        case "sgraf", True:
            from models.sgraf import load_sgraf

            return load_sgraf(name, settings.sgraf)
        case "x2vlm", True:
            from models.x2vlm_files import load_x2vlm

            return load_x2vlm(name)
        case "blip", True:
            from models.blip import load_blip

            return load_blip(name)
        case "heads", False:
            from models.heads import StudentOfHeads

            return StudentOfHeads(settings, partial(_load, settings=settings))
    return _plugged_in(spec)


def _plugged_in(spec: str) -> Any:
    """Return a student of the user's own, by `package.module:factory`."""
    if not re.fullmatch(r"[\w.]+:\w+", spec):
        known = ", ".join(f"{name}:{rest}" if rest else name for name, rest in FAMILIES.items())
        raise StudentError(f"No student is called {spec!r}. Expected {known}, or package.module:factory.")
    student: Any = made_by_factory(spec, StudentError)
    members = MEMBERS if hasattr(student, "encode") else TWO_TOWERS
    missing = [member for member in members if not hasattr(student, member)]
    if missing or not isinstance(student, nn.Module):
        fault = f"lacks {', '.join(missing)}" if isinstance(student, nn.Module) else "is not a torch module"
        raise StudentError(
            f"{spec} returned a {type(student).__name__}, which {fault}. A student is a torch module with "
            f"{', '.join(TWO_TOWERS)}; or, where it is more than two towers, with {', '.join(MEMBERS)} "
            f"(docs/students.md)."
        )
    return student


def _parts(student: Any, tower: str, spec: str) -> Parts:
    towers = getattr(student, "towers", None)
    if isinstance(towers, Mapping) and towers and tower not in towers:
        raise StudentError(where="student.freeze", found=tower, expected=f"towers of {spec}: {', '.join(towers)}")
    parts = towers.get(tower) if isinstance(towers, Mapping) else None
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(p, nn.Module | nn.Parameter) for p in parts):
        raise StudentError(
            f"{spec} does not say what its {tower} tower is, so student.freeze=[{tower}] cannot freeze it. Expected "
            f"`towers`, such as {{'image': [modules and parameters], 'text': […]}} (docs/students.md)."
        )
    return parts
