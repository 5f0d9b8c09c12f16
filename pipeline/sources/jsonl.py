"""JSON Lines as a table: one object a line, whose keys are the columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from pipeline.sources.files import SourceFile, lines
from pipeline.sources.tables import Row
from stores.errors import SourceError

_LINES_FOR_COLUMNS: Final = 100
"""Optional keys may be absent from the first objects; this many are asked."""


class JsonLinesTable:
    """A file of one JSON object a line."""

    def __init__(self, file: SourceFile, encoding: str | None) -> None:
        self.file, self._encoding = file, encoding

    def columns(self) -> list[str]:
        found: dict[str, None] = {}
        for _, value in islice(self._values(), _LINES_FOR_COLUMNS):
            found |= dict.fromkeys(value if isinstance(value, dict) else ())
        if not found:
            raise SourceError(f"{self.file}: no JSON object in its first lines; expected one object a line.")
        return list(found)

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        for number, (line, value) in enumerate(self._values()):
            if isinstance(value, dict):
                yield Row(number, f"line {line}", [value.get(name) for name in wanted])
            else:
                yield Row(number, f"line {line}", (), "it is no JSON object")

    def _values(self) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines(self.file, "\n", self._encoding), start=1):
            if not line.isspace():
                yield number, parsed(line)


def parsed(line: str) -> Any:
    """Return the value that a line of JSON says, or None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
