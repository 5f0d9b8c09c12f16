"""The world of the scenes: what a picture holds, and what a caption claims of it.

A scene is one to three objects on a textured ground; a caption's *meaning* is one description for each object that it
names, each fixing some of the object's attributes and leaving the rest open. Both are drawn from a seed alone, so
that the truth (which captions hold for which pictures) is known exactly and never read back from the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES: Final = ("small", "large")
PLACES: Final = ("top left", "top right", "bottom left", "bottom right", "centre")
ATTRIBUTES: Final = ("shape", "colour", "size", "place")
VALUES: Final = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}
GROUNDS: Final = ("grain", "stripes", "checks", "dots", "slope")

MAX_OBJECTS: Final = 3
CAPTIONS_PER_SCENE: Final = 5
OPEN: Final = -1
"""Stands for an attribute that a description leaves open, and for an object that a scene does not have."""

# Which attributes a description fixes, and how often it does: mostly detailed, with a tail of very vague ones that hold
# for many pictures.
DETAIL: Final = (
    (("shape", "colour", "size", "place"), 0.36),
    (("shape", "colour", "place"), 0.36),
    (("shape", "colour", "size"), 0.12),
    (("shape", "colour"), 0.06),
    (("colour",), 0.05),
    (("shape",), 0.05),
)
OBJECT_COUNTS: Final = (0.40, 0.40, 0.20)
"""Probability of one, two and three objects in a scene."""
NAMED_COUNTS: Final = (0.4, 0.6)
"""Probability that a caption names one object, and two where there are as many."""

Description = tuple[int, int, int, int]
"""(shape, colour, size, place) as positions in `VALUES`, or `OPEN`."""
Meaning = tuple[Description, ...]
"""One description for each object that a caption names."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one picture holds: its objects, largest first, and the ground's texture."""

    objects: tuple[Description, ...]
    ground: int
    captions: tuple[Meaning, ...]
    seed: tuple[int, ...]

    @property
    def label(self) -> str:
        """The class of the picture, for image retrieval: colour and shape of its foremost object."""
        shape, colour, _, _ = self.objects[0]
        return f"{COLOURS[colour]} {SHAPES[shape]}"


def draw_scene(*seed: int) -> Scene:
    """Draw one scene and its captions' meanings from the numbers `seed` alone."""
    random = np.random.default_rng(seed)
    count = 1 + int(random.choice(MAX_OBJECTS, p=OBJECT_COUNTS))
    places = random.permutation(len(PLACES))[:count]
    objects = [
        (
            int(random.integers(len(SHAPES))),
            int(random.integers(len(COLOURS))),
            int(random.integers(len(SIZES))),
            int(place),
        )
        for place in places
    ]
    objects.sort(key=lambda thing: -thing[2])
    captions = tuple(_draw_meaning(random, objects) for _ in range(CAPTIONS_PER_SCENE))
    return Scene(objects=tuple(objects), ground=int(random.integers(len(GROUNDS))), captions=captions, seed=seed)


CLASSES: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""What `Scene.label` may be."""
_AGAIN: Final = 1000


def draw_scene_without(classes: frozenset[str], *seed: int) -> Scene:
    """Draw one scene, and where its class is one of these, another in its place."""
    scene, attempt = draw_scene(*seed), 0
    while scene.label in classes:
        scene, attempt = draw_scene(*seed, _AGAIN + attempt), attempt + 1
    return scene


def unseen_classes(seed: int, count: int) -> frozenset[str]:
    """Return so many classes, drawn from the seed."""
    order = np.random.default_rng((seed, _AGAIN)).permutation(len(CLASSES))
    return frozenset(CLASSES[place] for place in order[:count])


def _draw_meaning(random: np.random.Generator, objects: list[Description]) -> Meaning:
    count = min(len(objects), 1 + int(random.choice(len(NAMED_COUNTS), p=NAMED_COUNTS)))
    named = random.permutation(len(objects))[:count]
    descriptions = []
    for position in named:
        fixed = DETAIL[int(random.choice(len(DETAIL), p=[weight for _, weight in DETAIL]))][0]
        shape, colour, size, place = (
            value if attribute in fixed else OPEN
            for attribute, value in zip(ATTRIBUTES, objects[position], strict=True)
        )
        descriptions.append((shape, colour, size, place))
    return tuple(descriptions)


def object_table(scenes: list[Scene]) -> NDArray[np.int8]:
    """Return the objects of all scenes as one (scenes, MAX_OBJECTS, 4) array, `OPEN` where there is no object."""
    table = np.full((len(scenes), MAX_OBJECTS, len(ATTRIBUTES)), OPEN, dtype=np.int8)
    for row, scene in enumerate(scenes):
        table[row, : len(scene.objects)] = scene.objects
    return table
