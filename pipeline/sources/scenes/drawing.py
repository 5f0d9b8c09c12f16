"""Drawing a scene: textured ground, then its objects, drawn large and scaled down to smooth their edges."""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.sources.scenes.world import COLOURS, GROUNDS, PLACES, SHAPES, SIZES, Scene

OVERSAMPLING: Final = 4
PAINT: Final = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 210),
    "yellow": (250, 218, 40),
    "purple": (140, 60, 170),
    "orange": (255, 127, 14),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
CENTRES: Final = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "centre": (0.5, 0.5),
}
RADII: Final = {"small": 0.11, "large": 0.20}
Point = tuple[float, float]


def draw(scene: Scene, pixels: int) -> Image.Image:
    """Draw `scene` as an RGB picture of `pixels` × `pixels`."""
    random = np.random.default_rng((*scene.seed, 1))
    canvas = Image.fromarray(_ground(GROUNDS[scene.ground], pixels, random)).resize(
        (pixels * OVERSAMPLING,) * 2, Image.Resampling.BILINEAR
    )
    pen = ImageDraw.Draw(canvas)
    for shape, colour, size, place in scene.objects:
        x, y = (at + random.uniform(-0.04, 0.04) for at in CENTRES[PLACES[place]])
        radius = RADII[SIZES[size]] * random.uniform(0.9, 1.1)
        paint = tuple(int(np.clip(c + random.integers(-14, 15), 0, 255)) for c in PAINT[COLOURS[colour]])
        _draw_shape(pen, SHAPES[shape], (x * canvas.width, y * canvas.width), radius * canvas.width, paint)
    return canvas.resize((pixels, pixels), Image.Resampling.BOX)


def png(picture: Image.Image) -> bytes:
    """Return the picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _ground(texture: str, pixels: int, random: np.random.Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:pixels, 0:pixels].astype(np.float64)
    base = random.uniform(95, 165, size=3)
    period = random.uniform(6, 14)
    angle = random.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    match texture:
        case "stripes":
            pattern: NDArray[np.float64] = np.sign(np.sin(2 * math.pi * along / period))
        case "checks":
            pattern = np.sign(np.sin(2 * math.pi * x / period) * np.sin(2 * math.pi * y / period))
        case "dots":
            pattern = 2.0 * (((x % period) - period / 2) ** 2 + ((y % period) - period / 2) ** 2 < 6) - 1
        case "slope":
            pattern = 2.0 * along / np.abs(along).max()
        case _:
            pattern = random.normal(0, 0.8, size=(pixels, pixels))
    field = base + 11 * pattern[..., None] + random.normal(0, 4, size=(pixels, pixels, 1))
    ground: NDArray[np.uint8] = np.clip(field, 0, 255).astype(np.uint8)
    return ground


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, paint: tuple[int, ...]) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            pen.ellipse(box, fill=paint)
        case "ring":
            pen.ellipse(box, outline=paint, width=round(radius * 0.42))
        case "square":
            side = radius * 0.86
            pen.rectangle((x - side, y - side, x + side, y + side), fill=paint)
        case "diamond":
            pen.polygon(_polygon(centre, radius * 1.1, 4, 0.0), fill=paint)
        case "triangle":
            pen.polygon(_polygon((x, y + radius * 0.2), radius * 1.15, 3, -math.pi / 2), fill=paint)
        case "star":
            outer = _polygon(centre, radius * 1.15, 5, -math.pi / 2)
            inner = _polygon(centre, radius * 0.48, 5, -math.pi / 2 + math.pi / 5)
            pen.polygon([point for pair in zip(outer, inner, strict=True) for point in pair], fill=paint)
        case "cross":
            arm = radius * 0.34
            pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=paint)
            pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=paint)
        case "heart":
            lobe = radius * 0.56
            for side in (-1, 1):
                middle = x + side * lobe * 0.92
                pen.ellipse((middle - lobe, y - radius * 0.85, middle + lobe, y - radius * 0.85 + 2 * lobe), fill=paint)
            pen.polygon(
                [(x - radius * 1.02, y - radius * 0.1), (x + radius * 1.02, y - radius * 0.1), (x, y + radius)],
                fill=paint,
            )


def _polygon(centre: Point, radius: float, corners: int, start: float) -> list[Point]:
    turns = (start + 2 * math.pi * corner / corners for corner in range(corners))
    return [(centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn)) for turn in turns]
