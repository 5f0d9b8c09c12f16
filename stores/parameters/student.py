"""Parameters of the model to train, and of the families that have more of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from stores.layout import SAFE_NAME
from stores.modality import Level
from stores.parameters.kinds import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Head:
    """A modality of the student `heads`."""

    # features that the store holds under this name; or else
    features: str | None = None
    # a student (named as `student.model` is) whose tower of this modality is trained along
    tower: str | None = None
    # a hidden layer: Linear, GELU, Linear
    hidden: bool = False
    # rows and width of the features; null: as the store has them
    level: Level | None = None
    width: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sgraf:
    """SGR and SAF (arXiv 2101.01368), where `student.model` is sgraf:…; a file has sizes of its own."""

    # of the store, the vectors of each image's regions
    regions: str = "regions"
    # how many regions, and numbers of each; null: as the store has them
    shape: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    # JSON of the words' numbers; null: the one that lies beside the student's file
    vocabulary: str | None = None
    # its SHA-256; null: whichever the file has
    vocabulary_sha256: str | None = None
    # numbers of an embedding, of a word's, of a similarity vector
    dim: PositiveInt = 1024
    word: PositiveInt = 300
    similarity: PositiveInt = 256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sets:
    """How the student `maxmatch:…` makes and compares sets of vectors (MaxMatch, arXiv 2506.21538)."""

    # K, the vectors of an item
    members: PositiveInt = 4
    # of slot attention, with weights in common
    rounds: PositiveInt = 2
    # of 64 numbers each
    heads: PositiveInt = 4
    # what a matched cosine c counts: exp(c) − 1, or c
    activation: Literal["expm1", "none"] = "expm1"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Student:
    """The model to train."""

    # open-clip:<model>[/<pretrained tag or file>], towers:…, maxmatch:…, sgraf:<SGR or SAF>[/<file>],
    # package.module:factory, or heads
    model: str = "open-clip:small-clip"
    # of the student `heads`, by modality, those of samples first: {image: {features: hog-color}, …}
    heads: dict[Annotated[str, Field(pattern=SAFE_NAME)], Head] = Field(default_factory=dict)
    # of the student `heads`: numbers of an embedding
    dim: PositiveInt = 512
    sgraf: Sgraf = Field(default_factory=Sgraf)
    # of the students `maxmatch:…`
    sets: Sets = Field(default_factory=Sets)
    # a trained run (its best checkpoint) or a checkpoint, whose weights it begins with
    weights: str | None = None
    # towers that are not trained, by modality: image, text
    freeze: list[str] = Field(default_factory=list)
    # recompute activations in the backward pass: less memory, a third more time
    gradient_checkpointing: bool = False
