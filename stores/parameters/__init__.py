"""Parameters: one frozen dataclass per section of params.yaml, validated on construction.

`params.yaml` is the record of a run; flags override single values. The defaults here equal those of the checkout's
params.yaml (a test compares them), so a user's own file names only what differs.
"""

from __future__ import annotations

from typing import Any, Final, get_type_hints

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from stores.parameters.data import Columns, Data, Extract, FeatureFile, Noise, Scenes, Teachers
from stores.parameters.kinds import STRICT, Column, Precision
from stores.parameters.loss import Coordination, Hinge, Loss, Matching, Rematching, SetTerms
from stores.parameters.student import Head, Sets, Sgraf, Student
from stores.parameters.training import Evaluation, Rerank, Train

__all__ = [
    "SECTIONS",
    "Column",
    "Columns",
    "Coordination",
    "Data",
    "Evaluation",
    "Extract",
    "ExtractParameters",
    "FeatureFile",
    "Head",
    "Hinge",
    "Loss",
    "Matching",
    "Noise",
    "Precision",
    "Rematching",
    "Rerank",
    "Scenes",
    "SetTerms",
    "Sets",
    "Sgraf",
    "Student",
    "Teachers",
    "Train",
    "TrainParameters",
    "as_dict",
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExtractParameters:
    """The sections that cusa-extract reads."""

    data: Data = Field(default_factory=Data)
    teachers: Teachers = Field(default_factory=Teachers)
    extract: Extract = Field(default_factory=Extract)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainParameters:
    """The sections that cusa-train reads."""

    teachers: Teachers = Field(default_factory=Teachers)
    student: Student = Field(default_factory=Student)
    loss: Loss = Field(default_factory=Loss)
    train: Train = Field(default_factory=Train)
    eval: Evaluation = Field(default_factory=Evaluation)


SECTIONS: Final[dict[str, type[Any]]] = get_type_hints(ExtractParameters) | get_type_hints(TrainParameters)


def as_dict(parameters: Any) -> dict[str, Any]:
    """Return parameters as plain values, for JSON."""
    values: dict[str, Any] = pydantic.TypeAdapter(type(parameters)).dump_python(parameters, mode="json")
    return values
