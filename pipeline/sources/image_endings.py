"""Which files are meant for images, by their names."""

from __future__ import annotations

from typing import Final

from pipeline.sources.files import stem_and_ending

IMAGE_ENDINGS: Final = (
    *("jpg", "jpeg", "jfif", "png", "webp", "gif"),
    *("bmp", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl"),
)
"""Of the last no picture is read; they are listed, so that each is quarantined by its name and another never taken."""


def is_image(name: str) -> bool:
    """Tell by a file's name whether it is meant for an image."""
    return stem_and_ending(name)[1].lower().removeprefix(".") in IMAGE_ENDINGS
