"""Further modalities of the scenes: what objects there are, a spoken caption, and a vector of each class.

None is taken from the pixels or the text that other modalities see: attributes and class embeddings come from what the
scene is, speech from the caption's words by codes of its own, as an encoder of sound would give them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.records import GivenFeatures
from pipeline.sources.scenes.language import captions_of
from pipeline.sources.scenes.world import COLOURS, PLACES, SHAPES, Scene
from stores.modality import Level
from stores.parameters import Scenes

VERSION: Final = 1
"""Raised with every change to what is made here."""
CODE: Final = 96
"""Numbers of a speech vector."""
HALF: Final = 16
"""Numbers of a class's vector that tell its colour, and its shape."""
SPEAKERS: Final = 20
FRAME_NOISE: Final = 1.0
SPEAKER_NOISE: Final = 0.3
ORDER: Final = 0.5
"""How much of the word before is in a frame."""
Rows = NDArray[np.float32]


class SceneFeatures(ABC):
    """One modality of scenes by their ids."""

    level: Level = "sample"
    shape: tuple[int, ...]
    unit = False
    stream: int
    """Which stream of random numbers says what is missing."""

    def __init__(self, scenes: Mapping[str, Scene], settings: Scenes) -> None:
        self._scenes, self._settings = scenes, settings

    def identity(self) -> Any:
        """Name the generator and its settings."""
        return [VERSION, asdict(self._settings)]

    def of(self, name: str) -> Rows | None:
        """Return the rows of a scene; those that the share of missing ones takes away are not numbers."""
        scene = self._scenes[name]
        rows = self._made(scene)
        if name.startswith("train"):
            random = np.random.default_rng((*scene.seed, 3, self.stream))
            rows[random.random(len(rows)) < self._settings.missing] = np.nan
        return rows

    @abstractmethod
    def _made(self, scene: Scene) -> Rows:
        """Return the rows of a scene, none missing."""


class Attributes(SceneFeatures):
    """Which shapes, colours and places a scene has: 0 or 1 each. They do not say which of them go together."""

    shape: tuple[int, ...] = (len(SHAPES) + len(COLOURS) + len(PLACES),)
    stream = 0

    def _made(self, scene: Scene) -> Rows:
        found = np.zeros((1, *self.shape), np.float32)
        for shape, colour, _, place in scene.objects:
            found[0, [shape, len(SHAPES) + colour, len(SHAPES) + len(COLOURS) + place]] = 1
        return found


class Speech(SceneFeatures):
    """A caption as it is spoken: frames with the codes of a word and of the one before, noise and a speaker; pooled."""

    level: Level = "caption"
    shape: tuple[int, ...] = (CODE,)
    stream = 1

    def _made(self, scene: Scene) -> Rows:
        random = np.random.default_rng((*scene.seed, 4))
        return np.stack([_spoken(caption, random) for caption in captions_of(scene)])


def _spoken(caption: str, random: np.random.Generator) -> Rows:
    """Return the mean of a caption's frames, two to five for each word: (CODE,)."""
    speaker = np.random.default_rng((7, int(random.integers(SPEAKERS)))).normal(size=CODE) * SPEAKER_NOISE
    frames, before = [], np.zeros(CODE)
    for word in caption.split():
        code = _code(word)
        length = int(random.integers(2, 6))
        frames.append(code + ORDER * np.roll(before, 1) + random.normal(size=(length, CODE)) * FRAME_NOISE)
        before = code
    pooled: Rows = (np.concatenate(frames).mean(axis=0) + speaker).astype(np.float32)
    return pooled


class ClassEmbedding:
    """A vector of each class that tells its colour and its shape, as embeddings of its words would."""

    level: Level = "class"
    shape: tuple[int, ...] = (2 * HALF,)
    unit = True

    def __init__(self, scenes: Mapping[str, Scene], settings: Scenes) -> None:
        """Depend on neither: a class is what it is called."""

    def identity(self) -> Any:
        """Name the generator."""
        return VERSION

    def of(self, name: str) -> Rows | None:
        """Return the row of a class."""
        vector = np.concatenate([_code(word)[:HALF] for word in name.split()])
        row: Rows = (vector / np.linalg.norm(vector)).astype(np.float32)
        return row[None]


def _code(word: str) -> NDArray[np.float64]:
    """Return what a word sounds like: (CODE,), of its own for each word."""
    return np.random.default_rng(list(word.encode())).normal(size=CODE)


MODALITIES: Final[dict[str, Callable[[Mapping[str, Scene], Scenes], GivenFeatures]]] = {
    "attributes": Attributes,
    "speech": Speech,
    "class_embedding": ClassEmbedding,
}
