"""The images of a store, read by row: each is a slice of its shard's tar, mapped read-only."""

from __future__ import annotations

import io
import mmap
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image

from stores.errors import StoreError
from stores.layout import Layout

MAPPED_SHARDS: Final = 64
"""How many tars one process keeps mapped."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF")
"""Pillow's names of the formats that are taken; a stranger's bytes never reach its forty other decoders."""

MAX_PIXELS: Final = 2**27
"""The most that `data.max_pixels` may be: 11,585 × 11,585 pixels. Pillow makes a GIF's frame and a WebP's canvas while
it opens the file; at twice this number it refuses to, before it takes the memory."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What Pillow would warn of, once a place and from within threads: a size that `data.max_pixels` rejects anyway, and
# damaged metadata, which is common and leaves the picture whole.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

_TURNS: Final[dict[object, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation."""


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file's bytes as RGB, as a viewer shows it on a white page.

    Turned upright by its EXIF orientation, of an animation the first frame, white where it is transparent.

    Raises:
        OSError: the bytes are no image, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            turn = _TURNS.get(_orientation(image))
            return _as_rgb(image if turn is None else image.transpose(turn))
    except MemoryError:
        raise  # the machine's fault, not the image's
    except Exception as error:
        # What Pillow's decoders raise on damaged files has no common base: struct.error, SyntaxError, IndexError, …
        raise OSError(f"{type(error).__name__}: {error}") from None


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF is passed over, as viewers do; what it raises has no common base either
        return None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Bare convert("RGB") would show the colour that lies hidden under transparent pixels: mostly black, often noise.
    page = Image.new("RGB", image.size, "white")
    visible = image.convert("RGBA")
    page.paste(visible, mask=visible)
    return page


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper byte of 16-bit greys, as Pillow does of 16-bit colours; its own conversion of greys clips them."""
    greys = np.asarray(image)
    upper = (greys >> 8).astype(np.uint8)
    if "transparency" in image.info:  # the one grey that is transparent
        upper[greys == image.info["transparency"]] = 255
    return Image.fromarray(upper)


class Images:
    """The encoded bytes of every image, found by global row.

    Random access by row, not a stream, is what lets a run resume at any sample with any number of workers. Tars are
    mapped on first touch in each process for itself; a pickle carries paths alone.
    """

    def __init__(self, layout: Layout, samples: pa.Table) -> None:
        shards = samples["shard"].combine_chunks()
        self._paths = [layout.shard(name) for name in shards.dictionary.to_pylist()]
        self._shard = shards.indices.to_numpy()
        self._offset = samples["image_offset"].to_numpy()
        self._bytes = samples["image_bytes"].to_numpy()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    def __getitem__(self, row: int) -> bytes:
        """Return the bytes of the image file of sample `row`."""
        start, length = int(self._offset[row]), int(self._bytes[row])
        tar = self._map(int(self._shard[row]))
        if not 0 <= start <= start + length <= len(tar):
            raise StoreError(
                f"{self._paths[self._shard[row]]} is shorter than samples.arrow says (row {row}). "
                f"Run cusa-extract again: it repairs the store."
            )
        return tar[start : start + length]

    def _map(self, number: int) -> mmap.mmap:
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        if len(self._maps) >= MAPPED_SHARDS:
            self._maps.popitem(last=False)[1].close()
        self._maps[number] = _map_file(self._paths[number])
        return self._maps[number]


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Run cusa-extract again: it repairs the store.") from None
