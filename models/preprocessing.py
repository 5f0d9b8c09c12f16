"""Image files to a model's input, by the transform that the model asks for: quickly where both allow it."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from stores.images import decode_rgb, is_plain_jpeg

Transform = Callable[[Image.Image], Tensor]


class Preprocessing:
    """What makes a model's input of an image file.

    Nearly all photographs are plain JPEGs, and nearly all models want them resized, cropped and normalised by
    torchvision. These take the fast path (`models.fast_pixels`), every other file or transform the careful one.
    """

    def __init__(self, transform: Transform) -> None:
        """Take an RGB image to (3, S, S) by `transform`."""
        self.transform = transform
        self._fast: Callable[[bytes], Tensor | None] | None = None
        if type(transform).__module__.startswith("torchvision."):
            # torchvision takes a second to load, and here it is loaded already.
            from models.fast_pixels import FastPixels

            self._fast = FastPixels.like(transform)

    @property
    def decodes_in_threads(self) -> bool:
        """Whether plain JPEGs are prepared by torch alone, which several threads can do side by side."""
        return self._fast is not None

    def __call__(self, data: bytes) -> Tensor:
        """Return the input that a file's bytes make: (3, S, S).

        Raises:
            DecodingError: the bytes are no image, or a truncated one.
        """
        pixels = self._fast(data) if self._fast and is_plain_jpeg(data) else None
        return self.transform(decode_rgb(data)) if pixels is None else pixels
