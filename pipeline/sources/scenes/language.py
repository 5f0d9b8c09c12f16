"""The grammar that puts a meaning into words, with varied wording."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.sources.scenes.world import COLOURS, OPEN, PLACES, SHAPES, SIZES, Description, Meaning, Scene

SHAPE_WORDS: Final = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "starfish"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "kite"),
    "heart": ("heart", "love heart"),
}
COLOUR_WORDS: Final = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "tangerine"),
    "white": ("white", "snowy"),
    "black": ("black", "dark"),
}
SIZE_WORDS: Final = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS: Final = {
    "top left": ("at top left", "in the upper left"),
    "top right": ("at top right", "in the upper right"),
    "bottom left": ("at bottom left", "in the lower left"),
    "bottom right": ("at bottom right", "in the lower right"),
    "centre": ("in the centre", "in the middle"),
}
OPENINGS: Final = ("", "there is ", "picture of ", "I see ", "we see ", "this shows ")
JOINTS: Final = (" and ", " with ", ", also ", " beside ")


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Put what is said of a scene into words."""
    random = np.random.default_rng((*scene.seed, 2))
    return tuple(say(meaning, random) for meaning in scene.captions)


def say(meaning: Meaning, random: np.random.Generator) -> str:
    """Put `meaning` into words, choosing among wordings with `random`."""
    phrases = [_phrase(description, random) for description in meaning]
    text = phrases[0]
    for phrase in phrases[1:]:
        text += _pick(JOINTS, random) + phrase
    return _pick(OPENINGS, random) + text


def _phrase(description: Description, random: np.random.Generator) -> str:
    shape, colour, size, place = description
    words = []
    if size != OPEN:
        words.append(_pick(SIZE_WORDS[SIZES[size]], random))
    if colour != OPEN:
        words.append(_pick(COLOUR_WORDS[COLOURS[colour]], random))
    words.append(_pick(SHAPE_WORDS[SHAPES[shape]], random) if shape != OPEN else "thing")
    article = "an" if words[0][0] in "aeiou" else "a"
    phrase = f"{article} {' '.join(words)}"
    return phrase if place == OPEN else f"{phrase} {_pick(PLACE_WORDS[PLACES[place]], random)}"


def _pick(choices: tuple[str, ...], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]
