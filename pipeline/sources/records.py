"""What every data set gives: records of an image and its captions, split by split, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stores.modality import Level


class Rejected(Exception):
    """A sample or caption that is left out, with the reason's short name and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        # An exception is rebuilt from its message otherwise, which is not what this one is made from.
        return type(self), (self.reason, self.detail)


class NoImage(Rejected):
    """A record turns out to have no image at all, which is a fault only where `data.require` asks for one."""


Caption = str | Rejected
"""A caption of a record: its text, or why its source has none to give. The others of its record are kept."""


class EncodedImage(Protocol):
    """The bytes of an image file, wherever they lie. Both methods are called on threads, and it can be pickled."""

    def identity(self) -> str:
        """Name the content well enough that a change shows, without reading it where that is possible."""

    def place(self) -> str | None:
        """Return what tells this picture from every other of the data set; None where only its bytes can."""
        return None

    def read(self) -> bytes:
        """Return the bytes; raises `Rejected` where they cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image with its captions, as the source has it; the image is read on demand."""

    source_id: str
    captions: tuple[Caption, ...]
    image: EncodedImage | None
    """None where `data.require` does not ask for one, and there is none."""
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that the source's own listing shows to be unusable."""

    source_id: str
    rejected: Rejected
    captions: int = 0
    """How many captions are lost with it, as far as that is known."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a source knows beyond its pairs, within one split, in positions among the records and captions kept."""

    relevance: NDArray[np.int64]
    """(pairs, 2): every caption and record that truly belong together, sorted."""
    caption_pairs: NDArray[np.float64]
    """(pairs, 3): caption, caption, similarity."""


class GivenFeatures(Protocol):
    """Features that a data set has of its own: attributes, speech, class embeddings."""

    level: Level
    shape: tuple[int, ...]
    """Of one row."""
    unit: bool
    """Whether rows are vectors of length one."""

    def identity(self) -> Any:
        """Name the content well enough that a change shows: plain values."""

    def of(self, name: str) -> NDArray[np.float32] | None:
        """Return the rows (n, *shape) of a sample by its id, of its captions, or of a class by its name.

        There is one row of a sample or class, and one of each caption. A row that is absent is not a number; None: all.
        """


@runtime_checkable
class HasFeatures(Protocol):
    """A data set that has features of its own."""

    @property
    def features(self) -> Mapping[str, GivenFeatures]:
        """The features by the name that the store gives them."""


class Source(Protocol):
    """A data set. It is read as a stream, so that memory does not grow with the number of its samples."""

    @property
    def description(self) -> dict[str, Any]:
        """What the manifest says of the source: its format and settings."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order in which their rows are numbered."""

    def id_scope(self, split: str) -> str:
        """Name the scope within which the split's source ids are unique; splits of one scope share it."""
        return split

    def count(self, split: str) -> int | None:
        """Return how many records a split has, where that is known without reading them all."""
        return None

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        """Yield the records of a split, in the source's order; each call begins anew and yields the same."""


@runtime_checkable
class KnowsTruth(Protocol):
    """A data set that knows more than its pairs."""

    def truth(self, split: str, kept: Sequence[int]) -> Truth:
        """Return the truth over the records `kept` (positions in `records(split)`, with all their captions)."""
