"""What a file's name says: its ending, whether it is meant for an image, whether a system or a tool left it."""

from __future__ import annotations

from typing import Final

from fsspec.utils import infer_compression

IMAGE_ENDINGS: Final = (
    *("jpg", "jpeg", "jfif", "png", "webp", "gif"),
    *("bmp", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl"),
)
"""Of the last no picture is read; they are listed, so that each is quarantined by its name and another never taken."""
_SYSTEM_NAMES: Final = frozenset(
    {
        *("__macosx", ".appledouble", ".ds_store", ".fseventsd", ".spotlight-v100", ".temporaryitems", ".trashes"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "lost+found", ".ipynb_checkpoints", ".thumbnails"),
    }
)
"""Files and folders of macOS, Windows, disk stations, Linux and notebooks, in lower case."""


def stem_and_ending(name: str) -> tuple[str, str]:
    """Divide a file's name (or a path) before the last dot of its last part: `a.b` and `.jpg` of `a.b.jpg`."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem and "/" not in ending else (name, "")


def plain_suffix(name: str) -> str:
    """Return the ending of a file's name in lower case, without a compression's: `.csv` of `a.csv.gz`."""
    if infer_compression(name):
        name = stem_and_ending(name)[0]
    return stem_and_ending(name)[1].lower()


def is_image(name: str) -> bool:
    """Tell by a file's name whether it is meant for an image."""
    return stem_and_ending(name)[1].lower().removeprefix(".") in IMAGE_ENDINGS


def is_system_file(path: str) -> bool:
    """Tell whether a file or folder is hidden (its name begins with a dot) or is, or lies in, one of a system's own.

    A hidden folder above it does not count: tars may keep the whole path of a cache.
    """
    parts = path.lower().split("/")
    return (parts[-1].startswith(".") and parts[-1] not in (".", "..")) or not _SYSTEM_NAMES.isdisjoint(parts)
