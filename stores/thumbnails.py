"""Small pictures for pages that need nothing but themselves."""

from __future__ import annotations

import base64
import io

from PIL import Image

from stores.images import decode_rgb


def thumbnail(data: bytes, side: int) -> str:
    """Return an image file's bytes as a JPEG of at most `side` pixels either way, in a data URI.

    It is empty where the bytes cannot be decoded.
    """
    try:
        picture = decode_rgb(data)
    except OSError:
        return ""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode("ascii")
