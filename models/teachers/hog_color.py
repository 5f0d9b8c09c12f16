"""hog-color: a classical image descriptor, for the embedded data set and machines without weights.

Two halves of equal weight: the histogram of oriented gradients (Dalal & Triggs, CVPR 2005) for shape, and Lab-colour
histograms over the whole picture and its quarters, in which a pixel counts the more it stands out from the picture's
median colour: what is pictured should outweigh what it is pictured on. It has no parameters to learn and no state.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.color import rgb2lab
from skimage.feature import hog
from torch import Tensor

from models.teachers.teacher import Teacher

SIDE: Final = 64
ORIENTATIONS: Final = 9
CELL: Final = 16
BLOCK: Final = 2
LAB_BINS: Final = (3, 6, 6)
LAB_LOW: Final = np.array([0.0, -75.0, -75.0])
LAB_HIGH: Final = np.array([100.0, 75.0, 75.0])
GRIDS: Final = (1, 2)
"""Colour histograms are taken over 1 × 1 and 2 × 2 parts of the picture."""
VERSION: Final = 1

_HOG_DIM: Final = (SIDE // CELL - BLOCK + 1) ** 2 * BLOCK**2 * ORIENTATIONS
_COLOUR_DIM: Final = int(np.prod(LAB_BINS)) * sum(grid**2 for grid in GRIDS)


class HogColorTeacher(Teacher):
    """The descriptor as a teacher; all its work is in `preprocess`, which runs on the decoding processes."""

    modality = "image"

    def __init__(self) -> None:
        super().__init__(
            spec="hog-color",
            dim=_HOG_DIM + _COLOUR_DIM,
            precision="fp32",
            device=torch.device("cpu"),
            identity=[VERSION, SIDE, ORIENTATIONS, CELL, BLOCK, LAB_BINS, GRIDS],
        )

    def preprocess(self, item: Image.Image) -> Tensor:
        """Return the descriptor of an RGB picture: (D,) float32."""
        return torch.from_numpy(describe(item))

    def forward(self, batch: Tensor) -> Tensor:
        return batch


def describe(picture: Image.Image) -> NDArray[np.float32]:
    """Return the L2-normalised descriptor of an RGB picture: (D,) float32."""
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    gradients = hog(
        pixels,
        orientations=ORIENTATIONS,
        pixels_per_cell=(CELL, CELL),
        cells_per_block=(BLOCK, BLOCK),
        block_norm="L2-Hys",
        channel_axis=-1,
    )
    halves = np.concatenate([_unit(gradients), _unit(_colours(pixels))])
    descriptor: NDArray[np.float32] = (halves / np.sqrt(2.0)).astype(np.float32)
    return descriptor


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    lab = rgb2lab(pixels)
    smooth = np.stack([uniform_filter(lab[..., channel], 3) for channel in range(3)], axis=-1)
    salience = np.square(smooth - np.median(lab.reshape(-1, 3), axis=0)).sum(axis=-1) + 1e-6
    bins = np.array(LAB_BINS)
    level = np.clip(((smooth - LAB_LOW) / (LAB_HIGH - LAB_LOW) * bins).astype(int), 0, bins - 1)
    code = (level[..., 0] * bins[1] + level[..., 1]) * bins[2] + level[..., 2]
    size = int(bins.prod())
    histograms = []
    for grid in GRIDS:
        part = np.arange(SIDE) * grid // SIDE
        place = part[:, None] * grid + part[None, :]
        counts = np.bincount((place * size + code).ravel(), weights=salience.ravel(), minlength=grid**2 * size)
        # The square root tempers the largest bins (Hellinger kernel).
        histograms.append(_unit(np.sqrt(counts)))
    return np.concatenate(histograms)


def _unit(vector: NDArray[Any]) -> NDArray[Any]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
