"""The images of a store, read by row: each is a slice of its shard's tar, mapped read-only."""

from __future__ import annotations

import io
import mmap
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stores import tables
from stores.errors import DamagedStoreError
from stores.layout import Layout
from stores.manifest import Shard

DECODING: Final = 3
"""Raised with every change to what a model sees of a file, here or in `models.fast_pixels`, so that features of other
pixels are seen to be stale."""
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


class DecodingError(OSError):
    """Bytes are no image, or a truncated one."""


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file's bytes as RGB, as a viewer shows it on a white page.

    Turned upright by its EXIF orientation, of an animation the first frame, white where it is transparent.

    Raises:
        DecodingError: the bytes are no image, or a truncated one.
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
        raise DecodingError(f"{type(error).__name__}: {error}") from None


def is_plain_jpeg(data: bytes) -> bool:
    """Tell from a file's header whether any JPEG decoder shows what `decode_rgb` does: RGB or grey, lying upright.

    The size in it is within Pillow's bound; a decoder finds the same one, as a JPEG with two headers is none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            return plain and _orientation(image) not in _TURNS
    except MemoryError:
        raise
    except Exception:  # see decode_rgb
        return False


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
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
    mapped on first touch in each process for itself, with their rows of samples.arrow, so that memory does not grow
    with the store; a pickle carries paths alone.
    """

    def __init__(self, layout: Layout, shards: Sequence[Shard]) -> None:
        self._layout = layout
        self._names = [shard.name for shard in shards]
        self._bounds = np.cumsum([0, *(shard.samples for shard in shards)])
        self._forget()

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_mapped", "_samples")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._mapped: OrderedDict[int, _MappedShard] = OrderedDict()
        self._samples: pa.ipc.RecordBatchFileReader | None = None

    def __getitem__(self, row: int) -> bytes:
        """Return the bytes of the image file of sample `row`."""
        number = int(np.searchsorted(self._bounds, row, side="right")) - 1
        shard = self._map(number)
        place = row - int(self._bounds[number])
        start, length = int(shard.offsets[place]), int(shard.lengths[place])
        if not 0 <= start <= start + length <= len(shard.tar):
            path, expected = self._layout.shard(self._names[number]), f"at least {start + length} bytes"
            raise DamagedStoreError(path=path, where=f"row {row}", found=len(shard.tar), expected=expected)
        return shard.tar[start : start + length]

    def _map(self, number: int) -> _MappedShard:
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]
        if len(self._mapped) >= MAPPED_SHARDS:
            self._mapped.popitem(last=False)[1].tar.close()
        if self._samples is None:
            self._samples = tables.open_batches(self._layout.samples, tables.SAMPLES)
            if self._samples.num_record_batches != len(self._names):
                path, found = self._layout.samples, self._samples.num_record_batches
                raise DamagedStoreError("batches of rows", path=path, found=found, expected=len(self._names))
        rows = self._samples.get_batch(number)
        self._mapped[number] = _MappedShard(
            tar=_map_file(self._layout.shard(self._names[number])),
            offsets=rows["image_offset"].to_numpy(),
            lengths=rows["image_bytes"].to_numpy(),
        )
        return self._mapped[number]


@dataclass(frozen=True, kw_only=True)
class _MappedShard:
    tar: mmap.mmap
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
