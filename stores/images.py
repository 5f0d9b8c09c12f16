"""The images of a store, read by row: each is a slice of its shard's tar, mapped read-only."""

from __future__ import annotations

import hashlib
import io
import mmap
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from stores import tables
from stores.digests import file_state
from stores.errors import DamagedStoreError, StoreError
from stores.layout import Layout
from stores.manifest import Shard, read_manifest
from stores.ownership import check_plain

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
            _turn_upright(image)
            return _as_rgb(image)
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
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            return upright and image.format == "JPEG" and image.mode in ("RGB", "L")
    except MemoryError:
        raise
    except Exception:  # see decode_rgb
        return False


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # noqa: S110 - damaged EXIF is passed over, as viewers do; what it raises has no common base either
        pass


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
    with the store; a pickle carries no data. A run may put another tar in a tar's place while this is open: what is
    mapped stays as it was, and what is mapped from then on is held against the shard's checksum.
    """

    def __init__(self, layout: Layout, shards: Sequence[Shard]) -> None:
        self._layout, self._shards, self._lock = layout, shards, Lock()
        self._manifest = file_state(layout.manifest)
        """Of a manifest that names these shards."""
        self._bounds = np.cumsum([0, *(shard.samples for shard in shards)])
        self._mapped = lru_cache(MAPPED_SHARDS)(self._map)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __reduce__(self) -> tuple[type[Images], tuple[Layout, Sequence[Shard]], dict[str, Any]]:
        return Images, (self._layout, self._shards), {"_manifest": self._manifest}

    def __getitem__(self, row: int) -> bytes:
        """Return the bytes of the image file of sample `row`; none where it has no image."""
        number = int(np.searchsorted(self._bounds, row, side="right")) - 1
        tar, offsets, lengths = self._mapped(number)
        place = row - int(self._bounds[number])
        start, length = int(offsets[place]), int(lengths[place])
        if not 0 <= start <= start + length <= len(tar):
            path, expected = self._layout.shard(self._shards[number].name), f"at least {start + length} bytes"
            raise DamagedStoreError(path=path, where=f"row {row}", found=len(tar), expected=expected)
        return tar[start : start + length]

    def present(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which samples (n,) have an image."""
        flags = np.empty(len(rows), dtype=bool)
        owners = np.searchsorted(self._bounds, rows, side="right") - 1
        for number in np.unique(owners):
            mine = owners == number
            flags[mine] = self._mapped(int(number))[2][rows[mine] - self._bounds[number]] > 0
        return flags

    @cached_property
    def complete(self) -> bool:
        """Whether every sample has an image."""
        lengths = (self._rows(number)["image_bytes"] for number in range(len(self._shards)))
        return all(bool((some.to_numpy() > 0).all()) for some in lengths)

    def _rows(self, number: int) -> pa.RecordBatch:
        """Return the rows of a shard. Arrow's reader is not for several threads at once."""
        with self._lock:
            rows = self._samples.get_batch(number)
        tables.check_values(rows, self._layout.samples)
        return rows

    @cached_property
    def _samples(self) -> pa.ipc.RecordBatchFileReader:
        samples = tables.open_batches(self._layout.samples, tables.SAMPLES)
        if samples.num_record_batches != len(self._shards):
            path, found = self._layout.samples, samples.num_record_batches
            raise DamagedStoreError("batches of rows", path=path, found=found, expected=len(self._shards))
        return samples

    def _map(self, number: int) -> tuple[mmap.mmap, NDArray[np.int64], NDArray[np.int64]]:
        """Return the tar of a shard, and where each image lies in it: offsets and lengths (n,)."""
        rows, path = self._rows(number), self._layout.shard(self._shards[number].name)
        check_plain(path)
        try:
            with path.open("rb") as stream:
                tar = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
        self._check(tar, self._shards[number], path)
        return tar, rows["image_offset"].to_numpy(), rows["image_bytes"].to_numpy()

    def _check(self, tar: mmap.mmap, shard: Shard, path: Path) -> None:
        """See that a tar is the shard's. A run takes the manifest away before it changes one: only then it is read."""
        size, state = len(tar), file_state(self._layout.manifest)
        if size == shard.bytes and state != self._manifest:
            try:
                named = read_manifest(self._layout).shards
            except StoreError:
                named = ()
            if named == tuple(self._shards):
                self._manifest = state
            elif shard not in named and hashlib.sha256(tar).hexdigest() != shard.sha256:
                size = 0
        if size != shard.bytes:
            advice = "Open the store again; where that does not help, cusa-extract repairs it."
            raise DamagedStoreError("is damaged, or another than when the store was opened", path=path, advice=advice)
