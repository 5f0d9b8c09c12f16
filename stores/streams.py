"""Standard output and error that never end a command's work: what they cannot take is replaced, dropped, or said.

- A character that the stream's encoding lacks becomes one that it has, of the same width.
- A stream that is closed, or a pipe whose reader has gone, takes no more; the command goes on, and its exit code is its
  own.
- Standard output that cannot be written for another reason (a full disk) is a message at the end, and exit code 2.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

import click

from stores.commands import heard_interrupts

_ERRORS: Final = "cusa.plain"
_PLAIN: Final = dict(zip("…–·×→↑τ−±", ".-*x>^t-+", strict=True))
"""For what our own texts have; of a spinner's dots (braille) a star remains, of anything else a question mark."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join("*" if "\u2800" <= c <= "\u28ff" else _PLAIN.get(c, "?") for c in lost), error.end


codecs.register_error(_ERRORS, _plain)


class Output(io.TextIOBase):
    """A text stream over another, or over none where that is closed, whose writing never fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        """Why it takes no more, unless nobody is there to read it."""
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return _ERRORS

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected a text, not {type(text).__name__}")
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def _try(self, method: str, *arguments: Any) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EBADF):
                self.fault = error
            self._give_up()
        except ValueError:  # closed by a library
            self._stream = None

    def _give_up(self) -> None:
        """Let what the stream still holds, and will try to write when Python ends, go nowhere."""
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
            os.dup2(nowhere.fileno(), stream.fileno())  # type: ignore[union-attr]


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Let standard output and error be such streams while the block runs.

    Raises:
        SystemExit: with code 2, where the block ends well and standard output could not be written.
    """
    before = sys.stdout, sys.stderr
    _occupy_closed_descriptors()
    output, error = sys.stdout, sys.stderr = Output(before[0]), Output(before[1])
    code: Any = 1
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        output.flush()
        lost = output.fault is not None and not code
        if lost:
            error.write(f"Error: Standard output cannot be written ({output.fault}). The work itself is done.\n")
        error.flush()
        sys.stdout, sys.stderr = before
        if lost:
            sys.exit(2)


def _occupy_closed_descriptors() -> None:
    """Open what is closed of descriptors 0 to 2 on nothing: else the next file opened gets what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


class Command(click.Command):
    """A command on unfailing streams that hears every Ctrl-C."""

    def main(self, *arguments: Any, **named: Any) -> Any:
        with unfailing_streams(), heard_interrupts():
            return super().main(*arguments, **named)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:  # while libraries load; click would end with 1, which means another thing
            click.echo("Stopped.", err=True)
            sys.exit(130)


class Group(Command, click.Group):
    """A group of commands on unfailing streams."""
