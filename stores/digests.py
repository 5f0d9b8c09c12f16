"""SHA-256 digests of files and of plain values, and what tells a file from another without reading it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Return by what a file is known from one that takes its place (see `state_of`); None where there is none."""
    try:
        # Opened, so that a network's file system asks again; a pipe is not waited for.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return state_of(os.fstat(opened))
    finally:
        os.close(opened)


def state_of(found: os.stat_result) -> tuple[int, int, int]:
    """Return a file's inode, its bytes and the time of its last change."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, in hex; equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
