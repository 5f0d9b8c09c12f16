"""Small pictures for pages that need nothing but themselves."""

from __future__ import annotations

import base64
import io

from PIL import Image

from stores.images import decode_rgb


def thumbnail(data: bytes, side: int) -> str:
    """Return an image file's thumbnail in a data URI; it is empty where the bytes cannot be decoded."""
    try:
        small = jpeg_thumbnail(data, side)
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(small).decode("ascii")


def jpeg_thumbnail(data: bytes, side: int) -> bytes:
    """Return an image file's bytes as a JPEG of at most `side` pixels either way.

    Raises:
        DecodingError: the bytes cannot be decoded.
    """
    picture = decode_rgb(data)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=80)
    return small.getvalue()
