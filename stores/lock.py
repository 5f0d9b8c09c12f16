"""One writer a folder: a lock file with its owner's host, process and start, which a dead owner loses by itself."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import SoftFileLock, Timeout

from stores.digests import file_state, state_of
from stores.errors import CusaError, StoreError
from stores.layout import Layout

_PATIENCE: Final = 3.0
"""Seconds to wait, in which a run that has just begun has written who it is."""


@contextmanager
def write_lock(layout: Layout) -> Iterator[None]:
    """Hold the store for writing; the lock of a process of this machine that has died is taken over.

    Raises:
        StoreError: another run holds it; the message names its host and process.
    """
    with lock_held(layout.lock, layout.root, "--store", StoreError):
        yield


@contextmanager
def lock_held(path: Path, folder: Path, flag: str, error: type[CusaError]) -> Iterator[None]:
    """Hold the lock file `path` of `folder`, which the user chose by `flag`.

    Raises:
        error: another run holds it; the message names its host and process.
    """
    lock = SoftFileLock(path, timeout=_PATIENCE)
    found = file_state(path)
    try:
        try:
            lock.acquire()
        except Timeout:
            _remove_unsigned(path, found)
            lock.acquire(timeout=0)
    except Timeout:
        raise error(
            f"Another run is at work on {folder}: {_owner(path)} holds {path.name}. Wait for it, or "
            f"choose another {flag}. If that machine has died, delete {path} and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_unsigned(path: Path, found: tuple[int, int, int] | None) -> None:
    """Remove a lock that is as it was `found`, and empty: its owner was killed before it could write who it is.

    Of several runs that come to this at once, one after the other has the file itself, by a lock of the kernel, and
    sees whether it still lies there: none removes what another has made in its place.
    """
    try:
        with path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            mine = os.fstat(stream.fileno())
            if mine.st_size == 0 and file_state(path) == found == state_of(mine):
                path.unlink()
    except OSError:  # it is gone, or its file system knows no such locks
        pass


def _owner(path: Path) -> str:
    try:
        process, host = path.read_text(encoding="utf-8").split("\n")[:2]
    except (OSError, ValueError):
        return "a run that can no longer be named"
    return f"process {process} on host {host}"
