"""What the commands print on standard output: tables, and texts of foreign data sets that a terminal may show."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.text import Text

_JOINER: Final = "\N{ZERO WIDTH JOINER}"
_WIDTH: Final = 160
"""Columns where there is no terminal to ask."""


def output() -> Console:
    """Return a console on standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def printable(text: str) -> str:
    """Return `text` on one line; what steers a terminal or turns a text's direction becomes a replacement character."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or c == _JOINER else "\N{REPLACEMENT CHARACTER}" for c in line)


def cell(text: str, longest: int = 120) -> Text:
    """Return `text` for a table's cell: printable, never taken for markup, cut at `longest` characters."""
    line = printable(text[: 2 * longest])
    return Text(line if len(line) <= longest else line[: longest - 1] + "…")
