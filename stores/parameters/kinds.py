"""What values parameters have, and how strictly they are read."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import pydantic
from pydantic import ConfigDict, Field, PositiveInt

STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["auto", "fp32", "bf16"]
BatchSize = PositiveInt | Literal["auto"]
Column = str | PositiveInt
Required = Literal["image", "text"]
SourceFormat = Literal[
    "auto",
    "karpathy",
    "coco",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
    "folder",
    "webdataset",
    "huggingface",
    "cub",
    "facc",
    "precomp",
    "store",
]


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("expected a text encoding that Python knows, such as utf-8, utf-16, cp1252, latin-1") from None
    return name


Encoding = Annotated[str, pydantic.AfterValidator(_known_encoding)]
