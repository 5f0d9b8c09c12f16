"""What may be asked of the server, checked at its door; OpenAPI's description is made of the same classes."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.acceptance import check_caption, check_image
from pipeline.sources import Rejected
from stores import CusaError

MAX_RESULTS: Final = 1000
MAX_TEXT: Final = 10_000
"""Characters of a query: more than text towers read."""
MAX_IMAGE: Final = 20 * 2**20
"""Bytes of an image file."""
MAX_BODY: Final = MAX_IMAGE * 4 // 3 + 2**20
"""Bytes of a request: such an image in base64, and the rest."""
MAX_NUMBERS: Final = 65_536
MAX_VALUES: Final = 2 * MAX_NUMBERS
"""Of all that a request in JSON says: an embedding's numbers, and commas within a text."""
MAX_RERANKED: Final = 256
Modality = Literal["image", "text"]
Name = Annotated[str, Field(max_length=4096)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def checked_text(text: str) -> str:
    """Return a text without the white space around it.

    Raises:
        ValueError: it shows nothing, or has characters that no text has.
    """
    try:
        return check_caption(text, 0).strip()
    except Rejected as refused:
        raise ValueError(f"the text is refused: {refused.reason}") from None


def checked_image(data: bytes, max_pixels: int) -> bytes:
    """Return an image file's bytes.

    Raises:
        CusaError: docs/hostile-input.md says that it would be quarantined.
    """
    if len(data) > MAX_IMAGE:
        raise CusaError("bytes of the image", found=len(data), expected=f"at most {MAX_IMAGE:,}")
    try:
        return check_image(data, max_pixels).data
    except Rejected as refused:
        raise CusaError(f"The image is refused: {refused.reason}. {refused.detail}.") from None


def decoded_base64(text: str) -> bytes:
    """Return the bytes that base64 stands for.

    Raises:
        ValueError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the image is no base64") from None


class Asked(BaseModel):
    """What all that is asked has in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SearchRequest(Asked):
    """A text, an image, both, a row of the store or an embedding; and what is searched."""

    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    image: bytes | None = Field(None, description="An image file, in base64.")
    row: Annotated[int, Field(ge=0, lt=2**62)] | None = Field(
        None, description="A row of the store, whose neighbours are wanted."
    )
    row_of: Modality = Field("image", description="What `row` counts.")
    embedding: Annotated[list[float], Field(max_length=MAX_NUMBERS, fail_fast=True)] | None = None
    text_weight: Share = Field(0.5, description="Of a text and an image together.")
    image_weight: Share = 0.5
    modality: Modality = Field("image", description="What is searched.")
    model: Name | None = Field(None, description="One of /api/store; the first if not said.")
    split: Name | None = Field(None, description="All if not said.")
    label: Name | None = Field(None, description="Of the samples; any if not said.")
    count: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 24
    rerank: Annotated[int, Field(ge=0, le=MAX_RERANKED)] = Field(
        0, description="How many of the nearest the second stage ranks anew (cusa-store serve --rerank)."
    )

    @field_validator("text")
    @classmethod
    def _shown(cls, text: str | None) -> str | None:
        return None if text is None else checked_text(text)

    @field_validator("image", mode="before")
    @classmethod
    def _decoded(cls, image: Any) -> Any:
        return decoded_base64(image) if isinstance(image, str) else image

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        kinds = [self.text is not None or self.image is not None, self.row is not None, self.embedding is not None]
        if sum(kinds) != 1:
            raise ValueError("expected a text, an image, both of these, a row, or an embedding")
        if self.text is not None and self.image is not None and not self.text_weight + self.image_weight:
            raise ValueError("expected a weight above 0 for the text or the image")
        return self


class KnnRequest(BaseModel):
    """A request of clip-retrieval's protocol; what it says of safety models, aesthetics and mclip is passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    image: str | None = None
    image_url: Name | None = None
    embedding_input: Annotated[list[float], Field(max_length=MAX_NUMBERS, fail_fast=True)] | None = None
    modality: Modality = "image"
    num_images: Annotated[int, Field(ge=1, le=MAX_RESULTS)]
    num_result_ids: Annotated[int, Field(ge=1, le=MAX_RESULTS)] | None = None
    indice_name: Name | None = None
    deduplicate: bool = False
