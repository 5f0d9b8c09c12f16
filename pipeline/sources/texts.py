"""Texts of a data set's files: their encoding, as it is said or seen, and their lines."""

from __future__ import annotations

import codecs
import functools
import io
from collections.abc import Iterator
from typing import Final

from pipeline.sources.files import SourceFile
from stores.errors import SourceError

LONGEST_LINE: Final = 64 << 20
_LOOKED_AT: Final = 4096
_MARKS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""With which a text says its encoding itself, whatever data.encoding says; that of UTF-32 LE begins as UTF-16's."""


def decoded(data: bytes, encoding: str | None) -> str:
    """Return the text in `data`, whole or cut off; bytes that are none become lone surrogates.

    The encoding is what data.encoding says, else UTF-8, or UTF-16 where the content shows it.
    """
    if encoding is None or data.startswith(_MARKS):
        encoding = text_encoding(data)
    try:
        return data.decode(encoding, "surrogateescape")
    except UnicodeDecodeError:
        # UTF-16 that breaks off has no escape; as UTF-8 it is all NULs, and rejected for them.
        return data.decode("utf-8", "surrogateescape")


def text_encoding(head: bytes) -> str:
    """Tell the encoding of a text by how it begins: by its mark, or by the zeros of UTF-16 in every second byte."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[:_LOOKED_AT:2], head[1:_LOOKED_AT:2]
    if len(odd) > 1 and 2 * odd.count(0) > len(odd) and not even.count(0):
        return "utf-16-le"
    if len(odd) > 1 and 2 * even.count(0) > len(even) and not odd.count(0):
        return "utf-16-be"
    return "utf-8-sig"


def lines(file: SourceFile, newline: str, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file, with their ends, decompressed; `newline` is that of `open`.

    Raises:
        SourceError: a line is so long that the file cannot be of lines.
    """
    with open_text(file, newline, encoding) as text:
        for number, line in enumerate(iter(functools.partial(text.readline, LONGEST_LINE), ""), start=1):
            if len(line) == LONGEST_LINE:
                advice = "Is the file of lines? Set data.format if it was taken for another format."
                raise SourceError(f"more than {LONGEST_LINE:,} characters", path=str(file), where=number, advice=advice)
            yield line


def open_text(file: SourceFile, newline: str, encoding: str | None = None) -> io.TextIOWrapper:
    """Open a text file, decompressed; bytes that are no text become lone surrogates, as in `decoded`."""
    with file.open_plain(_LOOKED_AT) as stream:
        head = stream.read(_LOOKED_AT)
    if encoding is None or head.startswith(_MARKS):
        encoding = text_encoding(head)
    return io.TextIOWrapper(file.open_plain(), encoding=encoding, errors="surrogateescape", newline=newline)
