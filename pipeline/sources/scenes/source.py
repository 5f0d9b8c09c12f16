"""The embedded data set as a source: pictures drawn on demand, captions, and the exact truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pipeline.sources.records import BadRecord, GivenFeatures, Record, Truth
from pipeline.sources.scenes.drawing import draw, png
from pipeline.sources.scenes.further_modalities import MODALITIES
from pipeline.sources.scenes.language import captions_of
from pipeline.sources.scenes.truth import relevance, similarity_pairs
from pipeline.sources.scenes.world import Scene, draw_scene_without, object_table, unseen_classes
from stores.parameters import Scenes

GENERATOR_VERSION: Final = 1
"""Raised with every change to what the generator makes, so that stores made before are seen to be stale."""
_SPLIT_SEEDS: Final = {"train": 0, "val": 1, "test": 2}
_GRADED_PAIRS: Final = 2000


class ScenesSource:
    """Scenes drawn from a seed; a split's size changes no other picture."""

    def __init__(self, settings: Scenes) -> None:
        self._settings = settings
        counts = {"train": settings.train, "val": settings.val, "test": settings.test}
        unseen = unseen_classes(settings.seed, settings.unseen)
        self._scenes = {
            split: [
                draw_scene_without(unseen if split != "test" else frozenset(), settings.seed, seed, number)
                for number in range(count)
            ]
            for (split, count), seed in zip(counts.items(), _SPLIT_SEEDS.values(), strict=True)
            if count
        }

    @property
    def description(self) -> dict[str, Any]:
        return {"format": "scenes", "generator": GENERATOR_VERSION, **asdict(self._settings)}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._scenes)

    @property
    def features(self) -> dict[str, GivenFeatures]:
        """The further modalities that the settings name."""
        scenes = {_id(split, number): scene for split, run in self._scenes.items() for number, scene in enumerate(run)}
        return {name: MODALITIES[name](scenes, self._settings) for name in self._settings.modalities}

    def id_scope(self, split: str) -> str:
        return ""

    def count(self, split: str) -> int:
        return len(self._scenes[split])

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        return (self._record(split, number, scene) for number, scene in enumerate(self._scenes[split]))

    def truth(self, split: str, kept: Sequence[int]) -> Truth:
        scenes = [self._scenes[split][number] for number in kept]
        meanings = [meaning for scene in scenes for meaning in scene.captions]
        seed = (self._settings.seed, _SPLIT_SEEDS[split], len(kept))
        return Truth(
            relevance=relevance(meanings, object_table(scenes)),
            caption_pairs=similarity_pairs(meanings, _GRADED_PAIRS, seed),
        )

    def _record(self, split: str, number: int, scene: Scene) -> Record:
        return Record(
            source_id=_id(split, number),
            captions=captions_of(scene),
            image=DrawnImage(scene, self._settings.pixels),
            label=scene.label,
        )


def _id(split: str, number: int) -> str:
    return f"{split}-{number}"


@dataclass(frozen=True)
class DrawnImage:
    """A scene, drawn when it is read."""

    scene: Scene
    pixels: int

    def identity(self) -> str:
        """Name the scene, its size and the generator."""
        return f"{self.scene.seed}@{self.pixels}v{GENERATOR_VERSION}"

    def place(self) -> str:
        """Return the same: no two scenes share a seed."""
        return self.identity()

    def read(self) -> bytes:
        """Draw the scene: a PNG file's bytes."""
        return png(draw(self.scene, self.pixels))
