"""JSON documents read piece by piece: a list of any length costs the memory of its longest item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple, NoReturn, TextIO

from pipeline.sources.files import SourceFile
from pipeline.sources.texts import LONGEST_LINE, open_text
from stores.errors import SourceError

_CHUNK: Final = 1 << 18
_MOST_DIGITS: Final = 4300
_LONGEST_MARK: Final = 16
"""The longest word of JSON, escape, or part of a number that the end of a chunk may cut in two, and more."""
_SPACE: Final = re.compile(r"[ \t\n\r]*")


def _whole(digits: str) -> int | float:
    # Python refuses to make an int of more; one absurd number, which becomes infinite, must not cost the file.
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


# Not strict: a line break within a caption, which JSON would have as \n, is taken as it stands.
_DECODER: Final = json.JSONDecoder(parse_int=_whole, strict=False)


def decode_json(text: str) -> Any:
    """Return the value that a JSON text says; raises `ValueError`, or `RecursionError` if it is nested too deeply."""
    return _DECODER.decode(text)


def parsed(line: str) -> Any:
    """Return the value that a line of JSON says, or None if it is none."""
    try:
        return decode_json(line)
    except (ValueError, RecursionError):
        return None


class MoreFollowsError(SourceError):
    """A document ends before its file does: the file is of lines, or no JSON."""


class Piece(NamedTuple):
    """An item of a document's list, or a value that is no list."""

    key: str | None
    """Under which key of the document's object it stands; None where the document itself is the list."""
    number: int | None
    """Which item of the list it is, from 0; None for a value that is no list."""
    value: Any


def pieces(file: SourceFile, encoding: str | None = None) -> Iterator[Piece]:
    """Yield the items of a document's list, or of each list directly in its object and the values beside, in order.

    Raises:
        MoreFollowsError: something follows.
        SourceError: it is not JSON from some place on, or neither list nor object.
    """
    with open_text(file, "", encoding) as text:
        reader = _Reader(file, text)
        yield from reader.items(None) if reader.takes("[") else reader.members()
        if reader.sign():
            raise MoreFollowsError(f"{file} is not JSON: something follows its end.")


class _Reader:
    """Reads a text value by value, holding a chunk of it, or as much as one value needs."""

    def __init__(self, file: SourceFile, text: TextIO) -> None:
        self._file, self._text = file, text
        self._buffer, self._at, self._ended = "", 0, False
        self._place = ""

    def items(self, key: str | None) -> Iterator[Piece]:
        if self.takes("]"):
            return
        for number in count():
            self._place = f", record {number}" if key is None else f", {key}[{number}]"
            yield Piece(key, number, self._value())
            if self.takes("]"):
                return
            self._expect(",")

    def members(self) -> Iterator[Piece]:
        self._expect("{")
        if self.takes("}"):
            return
        while True:
            key = str(self._value())
            self._expect(":")
            if self.takes("["):
                yield from self.items(key)
            else:
                yield Piece(key, None, self._value())
            if self.takes("}"):
                return
            self._expect(",")

    def sign(self) -> str:
        """Return the next character that is no white space, without taking it; "" at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._fill()

    def takes(self, sign: str) -> bool:
        """Take the next sign if it is this one."""
        if self.sign() != sign:
            return False
        self._at += 1
        return True

    def fail(self, why: str) -> NoReturn:
        raise SourceError(f"{self._file} is not JSON{self._place}: {why}. Is the file whole?")

    def _expect(self, sign: str) -> None:
        if not self.takes(sign):
            found = repr(self.sign()) if self.sign() else "the end"
            self.fail(f"expected {sign!r}, found {found}")

    def _value(self) -> Any:
        self.sign()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                if self._ended or end + _LONGEST_MARK <= len(self._buffer):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos + _LONGEST_MARK > len(self._buffer)
                if self._ended or not is_cut:
                    self.fail(f"{error.msg}: {self._buffer[error.pos : error.pos + 40]!r}")
            except RecursionError:
                self.fail("it is nested too deeply")
            if len(self._buffer) - self._at > LONGEST_LINE:
                self.fail(f"one value has more than {LONGEST_LINE:,} characters")
            self._fill()

    def _fill(self) -> None:
        """Read on: as much again as is held, so that a long value is not decoded from its beginning too often."""
        more = self._text.read(max(_CHUNK, len(self._buffer) - self._at))
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        self._ended = not more
