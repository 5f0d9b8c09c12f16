"""Makers of hostile image files: bombs, hidden colours, sixteen bits."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """Put a chunk behind a PNG's header."""
    return png[:33] + chunk(name, data) + png[33:]


def png_claiming(width: int, height: int) -> bytes:
    """A whole PNG of black pixels, one bit each, deflated: about a thousandth of what it becomes in memory."""
    packer = zlib.compressobj(9)
    row = bytes((width + 7) // 8 + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_claiming(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF whose one frame is to be cleared afterwards: Pillow makes what it clears it to while opening."""
    screen = struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    clear = b"!\xf9\x04" + bytes([8, 0, 0, 0]) + b"\0"
    return b"GIF89a" + screen + clear + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\0;"


def webp_claiming(width: int, height: int) -> bytes:
    """An animated WebP with a canvas of any size."""
    data = bytearray(encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bombs() -> dict[str, bytes]:
    small = encoded(noise(), "PNG")
    zeros = zlib.compress(bytes(200_000_000), 9)
    return {
        "png": png_claiming(20_000, 20_000),
        "jpeg": jpeg_claiming(65_000, 65_000),
        "gif-canvas": gif_claiming((65_535, 65_535), (16, 16)),
        "gif-frame": gif_claiming((16, 16), (65_535, 65_535)),
        "webp": webp_claiming(16_383, 16_383),
        "webp-widest": webp_claiming(2**24, 255),
        "icc": with_chunk(small, b"iCCP", b"profile\0\0" + zeros),
        "ztxt": with_chunk(small, b"zTXt", b"Comment\0\0" + zeros),
        "itxt": with_chunk(small, b"iTXt", b"Comment\0\1\0\0\0" + zeros),
        "many-texts": small[:33] + 100 * chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(2**20 - 1), 9)) + small[33:],
    }


def with_hidden_colour(mode: str) -> Image.Image:
    """Left: opaque dark red. Middle: the same at half strength. Right: green, wholly transparent."""
    pixels = np.zeros((16, 48, 4), np.uint8)
    pixels[:, :16] = (100, 0, 0, 255)
    pixels[:, 16:32] = (100, 0, 0, 128)
    pixels[:, 32:] = (0, 255, 0, 0)
    image = Image.fromarray(pixels)
    if mode == "P":
        palette = Image.new("P", image.size)
        palette.putpalette([100, 0, 0, 100, 0, 0, 0, 255, 0])
        palette.putdata(np.repeat([[0] * 16 + [1] * 16 + [2] * 16], 16, axis=0).ravel().tolist())
        return palette
    return image.convert(mode)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """Write (height, width, 1..4) uint16 as a PNG: grey, grey and alpha, colour, or colour and alpha."""
    height, width, bands = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[bands - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
