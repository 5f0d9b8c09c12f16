"""CSV and TSV as tables, line by line.

CSV is read strictly by the csv module. TSV has no quoting, but a field that is wrapped in double quotes as pandas
does is unwrapped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Final

from pipeline.sources.files import SourceFile, lines
from pipeline.sources.tables import Row
from stores.errors import SourceError

_LONGEST_FIELD: Final = 16 << 20


class DelimitedTable:
    """A file whose first line names the columns."""

    def __init__(self, file: SourceFile, delimiter: str) -> None:
        self.file, self._delimiter = file, delimiter

    def columns(self) -> list[str]:
        _, header = next(self._fields(), (0, []))
        if not header:
            raise SourceError(f"{self.file} is empty; expected a first line that names the columns.")
        return [name.strip() for name in header]

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        fields = self._fields()
        header = [name.strip() for _, name_list in [next(fields, (0, []))] for name in name_list]
        places = [header.index(name) for name in wanted]
        for number, (line, values) in enumerate(fields):
            if len(values) != len(header):
                fault = f"it has {len(values)} fields, the first line names {len(header)}"
                yield Row(number, f"line {line}", (), fault)
            else:
                yield Row(number, f"line {line}", [values[place] for place in places])

    def _fields(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each row's first line, from 1, with its fields; empty lines are left out."""
        return self._csv_fields() if self._delimiter == "," else self._plain_fields()

    def _plain_fields(self) -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(lines(self.file, "\n"), start=1):
            if text := line.rstrip("\r\n"):
                values = text.split(self._delimiter)
                yield number, [_unwrapped(value) for value in values] if '"' in text else values

    def _csv_fields(self) -> Iterator[tuple[int, list[str]]]:
        # The limit is the process's; it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        reader = csv.reader(lines(self.file, ""), strict=True)
        while True:
            first = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise SourceError(
                    f"{self.file}: the row that begins at line {first} is not CSV ({error}). Is a double quote never "
                    f"closed there? A quote within a quoted field is written twice."
                ) from None
            if values is None:
                return
            if values:
                yield first, values


def _unwrapped(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    inner = value[1:-1]
    return value if '"' in inner.replace('""', "") else inner.replace('""', '"')
