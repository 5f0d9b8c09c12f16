"""One writer a store: a lock file with its owner's host, process and start, which a dead owner loses by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import SoftFileLock, Timeout

from stores.errors import StoreError
from stores.layout import Layout

_PATIENCE: Final = 3.0
"""Seconds to wait, in which a run that has just begun has written who it is."""


@contextmanager
def write_lock(layout: Layout) -> Iterator[None]:
    """Hold the store for writing; the lock of a process of this machine that has died is taken over.

    Raises:
        StoreError: another run holds it; the message names its host and process.
    """
    lock = SoftFileLock(layout.lock, timeout=_PATIENCE)
    try:
        try:
            lock.acquire()
        except Timeout:
            # Empty after all this time: its owner was killed before it could write who it is.
            if not layout.lock.exists() or layout.lock.stat().st_size:
                raise
            layout.lock.unlink(missing_ok=True)
            lock.acquire()
    except Timeout:
        raise StoreError(
            f"Another run is at work on {layout.root}: {_owner(layout.lock)} holds {layout.lock.name}. Wait for it, or "
            f"choose another --store. If that machine has died, delete {layout.lock} and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        process, host = path.read_text(encoding="utf-8").split("\n")[:2]
    except (OSError, ValueError):
        return "a run that can no longer be named"
    return f"process {process} on host {host}"
