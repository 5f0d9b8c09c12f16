"""Texts of foreign data sets, made such that a terminal may show them."""

from __future__ import annotations

from typing import Final

from rich.text import Text

_JOINER: Final = "\N{ZERO WIDTH JOINER}"


def printable(text: str) -> str:
    """Return `text` on one line; what steers a terminal or turns a text's direction becomes a replacement character."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or c == _JOINER else "\N{REPLACEMENT CHARACTER}" for c in line)


def cell(text: str, longest: int = 120) -> Text:
    """Return `text` for a table's cell: printable, never taken for markup, cut at `longest` characters."""
    line = printable(text[: 2 * longest])
    return Text(line if len(line) <= longest else line[: longest - 1] + "…")
