"""Modalities: what a store has features of, and which of its rows these belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["sample", "caption", "class"]
"""Which rows: samples, captions, or the classes that the samples' labels name."""


@dataclass(frozen=True)
class Modality:
    """A kind of item, and the level of the rows that have one."""

    name: str
    level: Level


IMAGE: Final = Modality("image", "sample")
TEXT: Final = Modality("text", "caption")
LEVELS: Final[dict[str, Level]] = {modality.name: modality.level for modality in (IMAGE, TEXT)}
"""Of the modalities that teachers have."""
