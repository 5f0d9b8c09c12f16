"""The fast path from a plain JPEG to a model's input, for the chain of transforms that nearly all models have.

torchvision's decoder gives Pillow's pixels bit by bit, without Pillow's copies; resized as 8-bit integers, they differ
from Pillow's by one level here and there. Both together take about half of the careful path's time (benchmarks.pixels).

Shapes: H, W pixels of a file, S of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, v2

_KNOWN: Final = {"MaybeConvertMode", "MaybeToTensor", "ToTensor", "PILToTensor", "ToDtype"}
"""Further steps of torchvision, timm and open_clip, which take an RGB picture to values from 0 to 1."""
_MODES: Final = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
_TOLERANCE: Final = 2.5 / 255
"""How far a value of the probe may be from the careful path's, before it is normalised; half a level is the rule."""


@dataclass(frozen=True, kw_only=True)
class FastPixels:
    """The short side resized with antialiasing, the centre cropped, the channels normalised."""

    side: int
    mode: str
    height: int
    width: int
    mean: Tensor
    """(3, 1, 1), of levels from 0 to 255."""
    std: Tensor

    @classmethod
    def like(cls, transform: Any) -> Self | None:
        """Return what does the same as a transform; None where it is not such a chain."""
        if not isinstance(transform, Compose | v2.Compose):
            return None
        main = [step for step in transform.transforms if type(step).__name__ not in _KNOWN]
        match main:
            case [
                Resize() | v2.Resize() as resize,
                CenterCrop() | v2.CenterCrop() as crop,
                Normalize() | v2.Normalize() as to,
            ]:
                pass
            case _:
                return None
        side = [resize.size] if isinstance(resize.size, int) else resize.size
        if len(side) != 1 or resize.max_size is not None or resize.interpolation not in _MODES:
            return None
        mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) * 255 for values in (to.mean, to.std))
        height, width = crop.size
        mode = _MODES[resize.interpolation]
        same = cls(side=side[0], mode=mode, height=height, width=width, mean=mean, std=std)
        return same if same._does_as(transform) else None

    def __call__(self, data: bytes) -> Tensor | None:
        """Return (3, S, S) float32 of a plain JPEG; None where it is damaged, or smaller than what is cropped."""
        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        except RuntimeError:
            return None
        return self._prepared(pixels)

    def _prepared(self, pixels: Tensor) -> Tensor | None:
        """Return (3, S, S) float32 of (3, H, W) bytes, of which the channels lie last in memory."""
        height, width = pixels.shape[1:]
        long = int(self.side * max(height, width) / min(height, width))
        size = (self.side, long) if height <= width else (long, self.side)
        top, left = round((size[0] - self.height) / 2), round((size[1] - self.width) / 2)
        if top < 0 or left < 0:
            return None
        # As a batch of one its strides must say that channels lie last: else they would be copied apart first.
        batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(batch, size=size, mode=self.mode, antialias=True)[0]
        centre = resized[:, top : top + self.height, left : left + self.width].contiguous()
        return centre.float().sub_(self.mean).div_(self.std)

    def _does_as(self, transform: Any) -> bool:
        """Tell whether a picture of noise comes out as `transform` makes it: no setting was overlooked."""
        levels = np.random.default_rng(0).integers(0, 256, (2 * self.side, 3 * self.side, 3), dtype=np.uint8)
        ours, theirs = self._prepared(torch.from_numpy(levels).permute(2, 0, 1)), transform(Image.fromarray(levels))
        if ours is None or theirs.dtype != ours.dtype or theirs.shape != ours.shape:
            return False
        return bool(((ours - theirs) * self.std / 255).abs().max() <= _TOLERANCE)
