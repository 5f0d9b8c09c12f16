"""What a stranger's image, caption, id or label must be to enter a store; docs/hostile-input.md has the table.

What does not pass is `Rejected` with the short name of its reason, and quarantined. An image is judged by its header
before anything is decoded, so that a small file cannot claim much memory or time.
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
from dataclasses import dataclass
from typing import Final

from PIL import Image

from pipeline.sources import Rejected
from stores.images import FORMATS, MAX_PIXELS, decode_rgb

EXTENSIONS: Final = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
"""The file extension in the shards by Pillow's name of the format; an MPO is a JPEG with more pictures behind it."""

MAX_ASPECT: Final = 100
"""Long side over short side. Teachers resize the short side, to 448 pixels at the most usual: at 100 : 1 that makes
448 × 44,800 = 20 million pixels, less than `data.max_pixels`; at 20,000 : 1 it would be 4 thousand million."""

MAX_SCANS: Final = 100
"""Scans of a progressive JPEG; encoders write about 10. Each goes over the whole picture: measured at 49 million
pixels, one more costs 75 bytes and 0.07 s, so that a file of 0.3 MB holds a decoder for half a minute."""

MAX_CAPTION: Final = 100_000
"""Characters of a caption: more than any text tower reads (8,192 tokens are some 40,000 characters of English)."""

MAX_NAME: Final = 4_096
"""Characters of an id or a label: the longest addresses in web data, which serve as ids, are shorter."""

_START_OF_SCAN: Final = b"\xff\xda"


@dataclass(frozen=True)
class CheckedImage:
    """An image file that decodes whole; width and height are those after EXIF rotation."""

    data: bytes
    sha256: str
    extension: str
    width: int
    height: int


def check_image(data: bytes, max_pixels: int) -> CheckedImage:
    """Decode an image file's bytes to see that they are whole.

    Raises:
        Rejected: they are no image, truncated, of an unknown format, of more than `max_pixels`, long and thin beyond
            `MAX_ASPECT`, or of more than `MAX_SCANS`.
    """
    form = _check_header(data, max_pixels)
    try:
        upright = decode_rgb(data)
    except OSError as error:
        raise Rejected("truncated-image", str(error)) from None
    return CheckedImage(data, hashlib.sha256(data).hexdigest(), EXTENSIONS[form], upright.width, upright.height)


def _check_header(data: bytes, max_pixels: int) -> str:
    """Return Pillow's name of the format."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            form, width, height = str(image.format), image.width, image.height
    except Image.DecompressionBombError:
        # Of a GIF's frame or a WebP's canvas, which Pillow would make while it opens the file; see MAX_PIXELS.
        detail = f"the header claims more than {2 * MAX_PIXELS:,} pixels, data.max_pixels is {max_pixels:,}"
        raise Rejected("too-many-pixels", detail) from None
    except MemoryError:
        raise  # the machine's fault, not the image's
    except Exception as error:  # see decode_rgb
        raise _unreadable(data, error) from None
    if width * height > max_pixels:
        raise Rejected("too-many-pixels", f"{width * height:,} pixels, data.max_pixels is {max_pixels:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected("extreme-aspect", f"{width:,} × {height:,} pixels, at most {MAX_ASPECT} : 1 is taken")
    # Within a scan's data 0xFF is always followed by 0 or a restart mark, so this counts scans (and previews' in EXIF).
    if EXTENSIONS[form] == "jpg" and (scans := data.count(_START_OF_SCAN)) > MAX_SCANS:
        raise Rejected("too-many-scans", f"the JPEG has {scans:,} scans, at most {MAX_SCANS} are taken")
    return form


def _unreadable(data: bytes, error: Exception) -> Rejected:
    """Tell an image of a format that is not taken from what is no image, by its first bytes alone."""
    Image.init()
    first = data[:16].ljust(16, b"\0")  # as many as Pillow shows its decoders
    form = next((name for name, (_, accepts) in Image.OPEN.items() if accepts and accepts(first)), None)
    if form and form not in EXTENSIONS:
        return Rejected("unknown-format", f"the image is {form}, expected one of {', '.join(FORMATS)}")
    # Pillow names the buffer's memory address, which would differ from run to run.
    return Rejected("unreadable-image", f"{len(data)} bytes are no image: {str(error).split(' <_io.BytesIO')[0]}")


def check_caption(caption: str, position: int) -> str:
    """Return the caption without the white space around it; `position` is its place among the sample's captions.

    Raises:
        Rejected: it shows nothing, is longer than `MAX_CAPTION`, or cannot be stored whole.
    """
    text = caption.strip()
    if all(unicodedata.category(character) in _UNSEEN for character in text):
        raise Rejected("empty-caption", f"caption {position} is {_excerpt(caption)}")
    if len(text) > MAX_CAPTION:
        raise Rejected(
            "caption-too-long",
            f"caption {position} has {len(text):,} characters, at most {MAX_CAPTION:,} are taken "
            f"(cut it, or split it into several captions): {_excerpt(text)}",
        )
    _check_characters(text, "caption", f"caption {position}")
    return text


_UNSEEN: Final = {"Zs", "Zl", "Zp", "Cc", "Cf"}
"""Unicode's separators, controls and format characters, zero-width ones among them."""


def check_name(name: str, what: str) -> None:
    """Check an id or a label (`what`). It is data and never names a file, so dots and slashes mean nothing.

    Raises:
        Rejected: it is longer than `MAX_NAME`, or cannot be stored whole.
    """
    if len(name) > MAX_NAME:
        raise Rejected(
            f"{what}-too-long",
            f"the {what} has {len(name):,} characters, at most {MAX_NAME:,} are taken: {_excerpt(name)}",
        )
    _check_characters(name, what, f"the {what}")


def _check_characters(text: str, what: str, named: str) -> None:
    if "\0" in text:
        # Whatever is written in C reads only what stands before it, and two texts may become one.
        raise Rejected(f"nul-in-{what}", f"{named} has the character NUL at {text.index(chr(0)):,}: {_excerpt(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Half of a surrogate pair, as cut-off emoji leave.
        found = text[error.start : error.start + 1]
        # As bytes that are no UTF-8 come out of a text file; half an emoji has other code points.
        advice = "; if the file is in another encoding, set data.encoding, such as cp1252"
        told = f"{named} has {found!a} at {error.start:,}: {_excerpt(text)}"
        raise Rejected("not-unicode", told + advice * ("\udc80" <= found <= "\udcff")) from None


def _excerpt(text: str, length: int = 60) -> str:
    """Show a text's beginning in a message, what a terminal would obey or not show escaped."""
    return repr(text[:length]) + ("…" if len(text) > length else "")


def storable(text: str) -> str:
    """Return a text as the quarantine list can hold it: half surrogates escaped, cut to `MAX_NAME` characters."""
    return text[:MAX_NAME].encode(errors="backslashreplace").decode()
