"""Hostile images, row by row of docs/hostile-input.md: kept with the right colours, or quarantined."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_images import (
    bombs,
    encoded,
    gif_claiming,
    noise,
    plain,
    png_of_16_bits,
    with_chunk,
    with_hidden_colour,
)
from PIL import Image

from pipeline.acceptance import MAX_ASPECT, MAX_SCANS, check_image
from pipeline.sources import Rejected
from stores.images import MAX_PIXELS, decode_rgb

ROOT = Path(__file__).resolve().parents[1]


def reason(data: bytes, max_pixels: int = 10_000) -> str | None:
    """Return why the image is rejected; None if it is kept."""
    try:
        assert check_image(data, max_pixels).data == data
    except Rejected as rejected:
        return rejected.reason
    return None


def shown(data: bytes, x: int = 8, y: int = 8) -> list[int]:
    """Return the RGB value that decoding shows at a place."""
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)[y, x].tolist()


def assert_shows(data: bytes, expected: tuple[int, int, int], tolerance: int = 0, **place: int) -> None:
    assert reason(data) is None
    np.testing.assert_allclose(shown(data, **place), expected, atol=tolerance)


# Bombs


def test_bombs_are_quarantined_in_little_memory_and_time(tmp_path: Path) -> None:
    """Each bomb would take 190 MB or more. Each is checked by itself; memory is that of the process at its peak."""
    expected = dict.fromkeys(("png", "jpeg", "gif-canvas", "gif-frame", "webp", "webp-widest"), "too-many-pixels")
    expected |= dict.fromkeys(("icc", "ztxt", "itxt", "many-texts"), "unreadable-image")
    for name, data in bombs().items():
        assert len(data) < 1_000_000
        (tmp_path / name).write_bytes(data)
    script = """
import re, sys, time
from pathlib import Path
from PIL import Image
from pipeline.acceptance import check_image
from pipeline.sources import Rejected
Image.init()
def peak():  # ru_maxrss begins at the parent's, which hides what a small process takes
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, started = peak(), time.process_time()
    try:
        why = check_image(path.read_bytes(), 50_000_000) and "kept"
    except Rejected as rejected:
        why = rejected.reason
    grown = peak() - before
    print(path.name, why, grown // 1024, time.process_time() - started)
"""
    seen = {}
    for line in run_python(script, tmp_path).splitlines():
        name, why, megabytes, seconds = line.split()
        seen[name] = why
        assert int(megabytes) < 100, line
        assert float(seconds) < 2, line
    assert seen == expected


def run_python(script: str, *arguments: object, flags: tuple[str, ...] = ()) -> str:
    """Run a script in a process of its own; return its output, and fail on anything on its error stream."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_an_image_just_within_the_limit_is_kept() -> None:
    data = encoded(plain("red", size=(100, 100)), "PNG")
    assert reason(data, max_pixels=10_000) is None
    assert reason(data, max_pixels=9_999) == "too-many-pixels"
    with pytest.raises(Rejected, match=r"10,000 pixels, data\.max_pixels is 9,999"):
        check_image(data, 9_999)


def test_what_pillow_would_make_while_opening_is_bounded_whatever_max_pixels_says() -> None:
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS
    assert reason(gif_claiming((16, 16), (65_000, 65_000)), max_pixels=10**12) == "too-many-pixels"


def test_a_jpeg_of_endless_scans_is_quarantined() -> None:
    data = encoded(plain("red", size=(64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    ordinary = data.count(b"\xff\xda")
    assert ordinary < MAX_SCANS / 5
    for scans, expected in ((MAX_SCANS, None), (MAX_SCANS + 1, "too-many-scans")):
        assert reason(data[:-2] + (scans - ordinary) * data[last:-2] + data[-2:]) == expected


# Shapes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), None),
        ((1, 2), None),
        ((1, MAX_ASPECT), None),
        ((MAX_ASPECT, 1), None),
        ((1, MAX_ASPECT + 1), "extreme-aspect"),
        ((MAX_ASPECT + 1, 1), "extreme-aspect"),
        ((1, 20_000), "extreme-aspect"),
        ((20_000, 1), "extreme-aspect"),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_shapes(size: tuple[int, int], expected: str | None, form: str) -> None:
    width, height = size if form != "WEBP" else (min(side, 16_383) for side in size)  # WebP has none longer
    assert reason(encoded(plain("red", size=(width, height)), form), max_pixels=50_000) == expected


# Colours


def in_cmyk(red: int, green: int, blue: int, black: float = 0.25) -> Image.Image:
    """Ink that gives a colour on paper, by the plain formula: colour = 255 (1 - ink) (1 - black)."""
    ink = [round(255 * (1 - value / 255 / (1 - black))) for value in (red, green, blue)]
    return plain((*ink, round(255 * black)), "CMYK")


@pytest.mark.parametrize("colour", [(150, 20, 40), (20, 140, 60), (30, 40, 180), (190, 190, 190)])
def test_cmyk_colours_are_right(colour: tuple[int, int, int]) -> None:
    data = encoded(in_cmyk(*colour), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert b"Adobe" in data[:64]
    assert_shows(data, colour, tolerance=4)
    assert_shows(data.replace(b"Adobe", b"Nobod", 1), colour, tolerance=4)


def test_ycck_colours_are_right() -> None:
    """Adobe's other way: ink as Y, Cb, Cr beside black. Cb = Cr = 128 is neutral: Y is the ink of all three."""
    # Pillow inverts what it writes, hence 255 - value; the file holds 155, 128, 128 and 255 for no black.
    data = bytearray(encoded(plain((100, 127, 127, 0), "CMYK"), "JPEG", quality=100))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert_shows(bytes(data), (100, 100, 100), tolerance=4)


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("P", "PNG", {"transparency": bytes([255, 128, 0])}),
        ("LA", "PNG", {}),
    ],
)
def test_transparency_shows_white(mode: str, form: str, options: dict[str, Any]) -> None:
    data = encoded(with_hidden_colour(mode), form, **options)
    full = (30, 30, 30) if mode == "LA" else (100, 0, 0)  # 0.299 × 100 is the grey of that red
    assert_shows(data, full)
    assert_shows(data, tuple(round(value * 128 / 255 + 127) for value in full), tolerance=1, x=24)  # type: ignore[arg-type]
    assert_shows(data, (255, 255, 255), x=40)


@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_one_transparent_palette_entry_shows_white(form: str) -> None:
    data = encoded(with_hidden_colour("P"), form, transparency=2)
    assert_shows(data, (100, 0, 0), x=24)
    assert_shows(data, (255, 255, 255), x=40)


def test_one_transparent_colour_or_grey_shows_white() -> None:
    for mode, seen, hidden in (("RGB", (9, 8, 7), (0, 255, 0)), ("L", 30, 200), ("1", 0, 1)):
        image = plain(seen, mode)
        image.putpixel((8, 8), hidden)
        data = encoded(image, "PNG", transparency=255 if mode == "1" else hidden)
        assert_shows(data, (255, 255, 255))
        assert_shows(data, seen if isinstance(seen, tuple) else (seen,) * 3, x=0)


def test_opaque_images_are_decoded_as_ever() -> None:
    for form, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P")):
        data = encoded(noise().convert(mode), form)
        assert decode_rgb(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert decode_rgb(encoded(noise().convert("RGBA"), "PNG")).tobytes() == noise().tobytes()


def test_16_bits_are_scaled_not_clipped() -> None:
    levels = np.array([0, 255, 256, 4660, 32768, 65535], dtype=np.uint16)
    for bands in (1, 2, 3, 4):
        pixels = np.repeat(levels[None, :, None], bands, axis=2)
        if bands in (2, 4):
            pixels[..., -1] = 65535
        data = png_of_16_bits(pixels)
        assert reason(data) is None
        assert np.asarray(decode_rgb(data))[0].tolist() == [[level >> 8] * 3 for level in levels.tolist()]


def test_16_bits_with_alpha() -> None:
    pixels = np.full((16, 16, 2), 4660, np.uint16)
    pixels[8, 8, 1] = 0
    pixels[0, 0, 1] = 65535
    assert_shows(png_of_16_bits(pixels), (255, 255, 255))
    assert_shows(png_of_16_bits(pixels), (18, 18, 18), x=0, y=0)
    grey = np.full((16, 16, 1), 4660, np.uint16)
    grey[8, 8] = 4661
    data = with_chunk(png_of_16_bits(grey), b"tRNS", struct.pack(">H", 4661))
    assert_shows(data, (255, 255, 255))
    assert_shows(data, (18, 18, 18), x=0)


def test_one_bit_is_black_and_white() -> None:
    image = plain(0, "1")
    image.putpixel((8, 8), 1)
    assert_shows(encoded(image, "PNG"), (255, 255, 255))
    assert_shows(encoded(image, "PNG"), (0, 0, 0), x=0)


# Turned and moving


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int, form: str) -> None:
    """The stored picture of each orientation, as the EXIF standard defines it: where row 0 and column 0 are."""
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:] = (200, 0, 0), (0, 200, 0)
    upright[16:, :32], upright[16:, 32:] = (0, 0, 200), (200, 200, 200)
    stored = upright
    if "b" in corners[orientation]:
        stored = stored[::-1]
    if "r" in corners[orientation]:
        stored = stored[:, ::-1]
    if orientation >= 5:
        stored = stored.transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, quality=95)
    checked = check_image(data, 10_000)
    assert (checked.width, checked.height) == (64, 32)
    for x, y in ((16, 8), (48, 8), (16, 24), (48, 24)):
        np.testing.assert_allclose(shown(data, x, y), upright[y, x], atol=12)


def test_damaged_exif_leaves_the_picture_as_it_lies() -> None:
    """It is kept, upright or turned by what can still be read, and nobody is warned, even where warnings are errors."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description " * 20
    whole = exif.tobytes()
    orientation = struct.pack(">HHIH", 0x0112, 3, 1, 6)
    damaged = [
        whole[:40],
        whole[:60],
        whole[:8] + bytes(255 - byte for byte in whole[8:]),
        whole.replace(orientation, struct.pack(">HHIH", 0x0112, 3, 1, 99)),
        whole.replace(orientation, struct.pack(">HHIH", 0x0112, 2, 1, 6)),
        b"Exif\0\0" + b"\xff" * 30,
        b"Exif\0\0MM\0*",
    ]
    assert orientation in whole
    upright = encoded(noise(), "JPEG")
    pictures = {"JPEG": [], "PNG": [], "WEBP": []}
    for exif_bytes in damaged:
        segment = b"\xff\xe1" + struct.pack(">H", len(exif_bytes) + 2) + exif_bytes
        pictures["JPEG"].append(upright[:2] + segment + upright[2:])
        for form in ("PNG", "WEBP"):
            pictures[form].append(encoded(noise(), form, exif=exif_bytes, lossless=True))
    for form, files in pictures.items():
        seen = np.asarray(decode_rgb(upright) if form == "JPEG" else noise())
        for data in files:
            assert reason(data) is None
            assert any(np.array_equal(decode_rgb(data), picture) for picture in (seen, np.rot90(seen, -1)))
    script = """
import sys
from pipeline.acceptance import check_image
for picture in sys.argv[1:]:
    check_image(bytes.fromhex(picture), 10_000)
"""
    run_python(script, *(data.hex() for files in pictures.values() for data in files), flags=("-W", "error"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_seen(form: str) -> None:
    frames = [plain(colour) for colour in ((200, 10, 10), (10, 200, 10), (10, 10, 200))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100, loop=0)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert_shows(data, (200, 10, 10), tolerance=3)


# Damaged, and what is no image


def test_damaged_files_are_quarantined() -> None:
    for form, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {})):
        data = encoded(noise(), form, **options)
        for length in (len(data) // 2, len(data) * 3 // 4, len(data) - 60):
            assert reason(data[:length]) in {"truncated-image", "unreadable-image"}, (form, length)
    jpeg_data = encoded(noise(), "JPEG", progressive=True)
    assert reason(jpeg_data[: len(jpeg_data) // 2]) == "truncated-image"
    assert reason(jpeg_data[:-2]) == "truncated-image", "no end mark"


def test_what_a_jpeg_cannot_tell_is_kept() -> None:
    data = encoded(noise(), "JPEG")
    assert_shows(data + b"<html>" * 1000, tuple(shown(data)))  # type: ignore[arg-type]
    assert reason(data[: len(data) // 2] + b"\xff\xd9") is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "unreadable-image"),
        (b"\0", "unreadable-image"),
        (b"\xff\xd8\xff", "unreadable-image"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable-image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unreadable-image"),
        (np.random.default_rng(0).bytes(10_000), "unreadable-image"),
        (encoded(noise(), "BMP"), "unknown-format"),
        (encoded(noise(), "TIFF"), "unknown-format"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "unknown-format"),
        (encoded(noise(), "PPM"), "unknown-format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown-format"),
    ],
    ids=[
        "empty",
        "zero-byte",
        "jpeg-mark-alone",
        "html",
        "svg",
        "noise",
        "bmp",
        "tiff",
        "tiff-of-floats",
        "ppm",
        "postscript",
    ],
)
def test_what_is_no_image_of_ours(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def fuzz_samples() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": [noise(seed=1)]}
    return {
        "jpeg": encoded(noise(), "JPEG", exif=exif),
        "progressive": encoded(noise(), "JPEG", progressive=True),
        "cmyk": encoded(noise().convert("CMYK"), "JPEG"),
        "png": encoded(noise(), "PNG", exif=exif),
        "palette": encoded(noise().quantize(16), "PNG", transparency=bytes(range(16))),
        "apng": encoded(noise(), "PNG", **moving),
        "webp": encoded(noise(), "WEBP", exif=exif),
        "webp-alpha": encoded(noise().convert("RGBA"), "WEBP", **moving),
        "gif": encoded(noise(), "GIF", transparency=3),
        "gif-moving": encoded(noise(), "GIF", **moving),
    }


@pytest.mark.parametrize("name", fuzz_samples())
def test_a_damaged_byte_is_kept_or_quarantined_and_nothing_else(name: str) -> None:
    data = fuzz_samples()[name]
    random = np.random.default_rng(7)
    places = np.concatenate([random.integers(0, len(data), 150), random.integers(0, min(200, len(data)), 150)])
    outcomes = []
    for number, place in enumerate(places.tolist()):
        flipped = data[:place] + bytes([data[place] ^ int(random.integers(1, 256))]) + data[place + 1 :]
        started = time.process_time()
        outcomes.append(reason(data[:place] if number % 3 == 0 else flipped))
        assert time.process_time() - started < 2
    assert set(outcomes) <= {
        *(None, "truncated-image", "unreadable-image", "unknown-format", "too-many-pixels"),
        *("extreme-aspect", "too-many-scans"),
    }
    assert sum(outcome is not None for outcome in outcomes) > 80, "at least the hundred that are cut are noticed"
