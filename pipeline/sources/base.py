"""What every data set gives: records of an image and its captions, split by split, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Rejected(Exception):
    """A sample or caption that is left out, with the reason's short name and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image with its captions, as the source has it; the image is read on demand."""

    source_id: str
    captions: tuple[str, ...]
    read_image: Callable[[], bytes]
    """Returns the image file's bytes; raises `Rejected` where it cannot."""
    image_identity: str
    """Names the image's content well enough that a change shows, without reading it."""
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """A record that the source's own listing shows to be unusable."""

    source_id: str
    rejected: Rejected


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a source knows beyond its pairs, within one split, in positions among the records and captions kept."""

    relevance: NDArray[np.int64]
    """(pairs, 2): every caption and record that truly belong together, sorted."""
    caption_pairs: NDArray[np.float64]
    """(pairs, 3): caption, caption, similarity."""


class Source(Protocol):
    """A data set."""

    @property
    def description(self) -> dict[str, Any]:
        """What the manifest says of the source: its format and settings."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order in which their rows are numbered."""

    def id_scope(self, split: str) -> str:
        """Name the scope within which the split's source ids are unique; splits of one scope share it."""

    def records(self, split: str) -> Sequence[Record | BadRecord]:
        """Return the records of a split, in the source's order."""

    def truth(self, split: str, kept: Sequence[int]) -> Truth | None:
        """Return the truth over the records `kept` (positions in `records(split)`, with all their captions)."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a folder, named by the data set; the name may not lead out of the folder."""

    root: Path
    name: str

    def __call__(self) -> bytes:
        # By its words, not by where links lead: folders of links to other disks are the user's own.
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise Rejected("path-outside", f"{self.name} leads out of {self.root}")
        path = self.root / self.name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise Rejected("missing-file", f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise Rejected("unreadable-file", str(error)) from None

    @property
    def identity(self) -> str:
        """The file's name and size; its bytes are not read."""
        try:
            return f"{self.name}:{(self.root / self.name).stat().st_size}"
        except (OSError, ValueError):
            return f"{self.name}:absent"
