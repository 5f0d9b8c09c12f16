"""The images of a store, read by row: each is a slice of its shard's tar, mapped read-only."""

from __future__ import annotations

import io
import mmap
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from PIL import ExifTags, Image, ImageOps

from stores.errors import StoreError
from stores.layout import Layout

MAPPED_SHARDS: Final = 64
"""How many tars one process keeps mapped."""

# `data.max_pixels` is the one limit on an image's size; Pillow's own would warn from within threads.
Image.MAX_IMAGE_PIXELS = None


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file's bytes, turned upright by its EXIF orientation, as RGB.

    Raises:
        OSError: the bytes are no image, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(image) if turned else image
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except Exception as error:
        # What Pillow's decoders raise on damaged files has no common base: struct.error, SyntaxError, IndexError, …
        raise OSError(f"{type(error).__name__}: {error}") from None


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
