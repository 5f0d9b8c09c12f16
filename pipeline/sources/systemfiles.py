"""What operating systems and tools leave among a person's files: passed over, in folders, patterns and tars alike."""

from __future__ import annotations

from typing import Final

_SYSTEM_NAMES: Final = frozenset(
    {
        *("__macosx", ".appledouble", ".ds_store", ".fseventsd", ".spotlight-v100", ".temporaryitems", ".trashes"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "lost+found", ".ipynb_checkpoints", ".thumbnails"),
    }
)
"""Files and folders of macOS, Windows, disk stations, Linux and notebooks, in lower case."""


def is_system_file(path: str) -> bool:
    """Tell whether a file or folder is hidden (its name begins with a dot) or is, or lies in, one of a system's own.

    A hidden folder above it does not count: tars may keep the whole path of a cache.
    """
    parts = path.lower().split("/")
    return (parts[-1].startswith(".") and parts[-1] not in (".", "..")) or not _SYSTEM_NAMES.isdisjoint(parts)
