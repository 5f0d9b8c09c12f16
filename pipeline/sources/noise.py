"""Wrong pairs made on purpose, to study them: which image each caption of a split is paired with.

Two published rules: by image, all captions of an image move together (RCL, DECL; L2RM's index files, 2403.05105), and
by caption, each by itself, so that an image keeps some of its own (NCR). Both permute what they choose among itself;
what the permutation leaves in place stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.sources.unreadable import UNREADABLE, reason
from stores.errors import SourceError
from stores.parameters import Noise

Images = NDArray[np.int64]


def noisy_images(
    images: int, captions_per_image: int, ratio: float, level: Literal["image", "caption"], seed: int
) -> Images:
    """Return the image that each caption is paired with, (images · captions_per_image,), image by image.

    Args:
        images: how many there are.
        captions_per_image: how many captions each of them has.
        ratio: the share of the images, or of the captions, that are permuted, rounded down.
        level: which of the two.
        seed: what is drawn is a function of it and of the other arguments.

    Raises:
        ValueError: the ratio is not in [0, 1], the seed is below zero, or there is no such level.
    """
    if not 0 <= ratio <= 1 or seed < 0 or level not in ("image", "caption"):
        expected = "expected a ratio of 0 to 1, a seed from 0, and image or caption"
        raise ValueError(f"ratio {ratio:g}, seed {seed}, level {level!r}: {expected}.")
    return noisy_owners(np.repeat(np.arange(images), captions_per_image), images, ratio, level, seed)


def noisy_owners(owners: Images, images: int, ratio: float, level: Literal["image", "caption"], seed: int) -> Images:
    """Return the image that each caption is paired with, (captions,), where `owners` (captions,) are their own ones."""
    count = images if level == "image" else len(owners)
    random = np.random.default_rng((seed, count))
    chosen = random.permutation(count)[: int(ratio * count)]
    moved = np.arange(images) if level == "image" else owners.copy()
    moved[chosen] = moved[random.permutation(chosen)]
    return moved[owners] if level == "image" else moved


def released_owners(path: Path, owners: Images, images: int) -> Images:
    """Return the same from an index file: an .npy of whole numbers, an image for each image or for each caption.

    Raises:
        SourceError: it cannot be read, is of another length, or is no permutation of the split's images, or captions.
    """
    try:
        with np.errstate(over="raise"):  # NumPy multiplies the numbers of a shape, whatever they are
            index = npy.open_memmap(path, "r")
    except UNREADABLE as error:
        raise SourceError(f"cannot be read as an .npy of whole numbers ({reason(error)})", path=path) from None
    if index.shape not in ((images,), (len(owners),)) or index.dtype.kind not in "iu":
        found = f"{index.shape} {index.dtype}"
        expected = f"{images} or {len(owners)} whole numbers, as the split has images or captions"
        raise SourceError("an index of the images", path=path, found=found, expected=expected)
    by_image = len(index) == images
    moved = np.array(index, dtype=np.int64)
    if not np.array_equal(np.sort(moved), np.arange(images) if by_image else np.sort(owners)):
        expected = "each image once" if by_image else "each image as often as it has captions"
        raise SourceError("no permutation", path=path, expected=expected)
    return moved[owners] if by_image else moved


def paired_images(owners: Images, images: int, noise: Noise) -> Images:
    """Return the image that each caption of a split is paired with, (captions,), as the parameters ask for it."""
    if noise.file is not None:
        return released_owners(Path(noise.file), owners, images)
    return noisy_owners(owners, images, noise.ratio, noise.level, noise.seed)
