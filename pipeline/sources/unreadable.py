"""What may go wrong while a file is read, as one kind of error with one message."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from stores.errors import SourceError

# What libraries raise on a file that is damaged, or that claims more than there is: NumPy's headers are Python, which
# breaks in several ways; a zip may be encrypted (RuntimeError) or of an unknown method (NotImplementedError).
UNREADABLE: Final = (
    *(OSError, EOFError, ValueError, KeyError, ArithmeticError, RuntimeError, MemoryError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, pa.ArrowException),
)
"""What may be raised while a file is read that is not what it should be; `readable` makes one message of it."""


def reason(error: BaseException) -> str:
    """Say in words why a read failed."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError):
        # A server that cannot be reached is told by its driver as a file that is not there.
        if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
            return "no such file or folder"
        return str(cause) or type(cause).__name__
    if isinstance(error, tokenize.TokenError):
        return "the header is cut short or damaged"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def readable(where: object) -> Iterator[None]:
    """Turn what goes wrong in reading `where` into a `SourceError`."""
    try:
        yield
    except UNREADABLE as error:
        why = reason(error)
        absent = isinstance(error, FileNotFoundError)
        advice = "Check the path." if absent else "Check that it is whole and that you may read it."
        raise SourceError(f"{where} cannot be read: {why}. {advice}") from None
