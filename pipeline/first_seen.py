"""The first row of each distinct content: a map on disk, since memory should not hold a hundred million digests."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES: Final = 16
_CACHE_KIB: Final = 16_384


class FirstSeen:
    """Remembers the first row of each content that it is shown; contents are told apart by 128 bits of BLAKE2b."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        with system_errors():
            database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID")

    def rows(self, contents: Iterable[str | bytes], first: int) -> NDArray[np.int64]:
        """Take contents (n,) at the rows `first`, `first` + 1, …; return for each the row at which it first came."""
        # A source's id may hold half of a surrogate pair, which has no UTF-8.
        data = (text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in contents)
        digests = [hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest() for content in data]
        rows = range(first, first + len(digests))
        with system_errors():
            added = self._database.executemany(
                "INSERT OR IGNORE INTO seen VALUES (?, ?)", zip(digests, rows, strict=True)
            )
            if added.rowcount == len(digests):
                return np.array(rows, dtype=np.int64)
            ask, row_of = self._database.execute, "SELECT row FROM seen WHERE digest = ?"
            return np.array([ask(row_of, (digest,)).fetchone()[0] for digest in digests], dtype=np.int64)


@contextmanager
def first_seen(folder: Path) -> Iterator[FirstSeen]:
    """Yield an empty map whose file lies in `folder` and is removed afterwards."""
    with temporary_database(folder / "first-seen") as database:
        yield FirstSeen(database)


@contextmanager
def temporary_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield an empty database whose file lies at `path`, under a temporary name, and is removed afterwards."""
    path = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.unlink(missing_ok=True)
    try:
        with system_errors():
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        with closing(database):
            with system_errors():
                # It lives no longer than this process, so nothing of it needs to survive a crash.
                for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
                    database.execute(f"PRAGMA {setting}")
                database.execute("BEGIN")
            yield database
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn what SQLite says of the file system into what the system would have said."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, f"{os.strerror(number)}: the list of contents seen cannot grow ({error})") from None
