"""CSV and TSV as tables, line by line; what stands between the columns is seen by the content.

With commas and semicolons, fields are quoted as RFC 4180 has it, strictly. With tabs and bars there is no quoting, but
a field that is wrapped in double quotes as pandas does is unwrapped. Flickr30K's two files are read as they are:
`results.csv`, with ` | ` between the columns, and `results_20130124.token`, without a line of names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pipeline.sources.column_roles import are_usual, check_names, role_of
from pipeline.sources.file_names import is_image
from pipeline.sources.files import SourceFile
from pipeline.sources.table_source import Row
from pipeline.sources.texts import lines
from stores.errors import SourceError
from stores.parameters import Columns, Data

_LONGEST_FIELD: Final = 16 << 20
_LOOKED_AT: Final = 5
_DELIMITERS: Final = ("\t", ",", ";", "|")
_QUOTED: Final = (",", ";")
_NUMBERED: Final = re.compile(r"(.+\.\w{3,4})#\d+")
"""An image's name in Flickr's token files, with the number of its caption."""
_SEPARATOR: Final = re.compile(r'"?sep=(.)"?')
"""A first line for Excel, which says what divides the columns and is no row."""


@dataclass(frozen=True)
class Dialect:
    """What stands between the columns, and whether fields are quoted as in CSV."""

    delimiter: str
    quoted: bool

    def fields(self, line: str) -> list[str]:
        """Return the fields of a line that is a whole row."""
        text = line.rstrip("\r\n")
        if self.quoted:
            try:
                # Not strict: where a quoted field holds a line's end, this is only the beginning of the row.
                return next(csv.reader([text], delimiter=self.delimiter, skipinitialspace=True), [])
            except csv.Error:
                return text.split(self.delimiter)
        values = text.split(self.delimiter)
        if self.delimiter == "|":
            values = [value.strip(" ") for value in values]
        return [_unwrapped(value) for value in values] if '"' in text else values


def seen_dialect(first: Sequence[str], columns: Columns) -> Dialect | None:
    """Tell the dialect by a file's first lines; None if nothing in them divides columns."""
    known = [Dialect(delimiter, delimiter in _QUOTED) for delimiter in _DELIMITERS if first and delimiter in first[0]]
    rows = {dialect: [dialect.fields(line) for line in first] for dialect in known}
    for dialect in known:
        if are_usual(rows[dialect][0], columns) or _is_token_file(rows[dialect][0], dialect):
            return dialect
    # Without names, what leaves an image's name alone divides the columns, or what does it in every row alike.
    even = [dialect for dialect in known if len(first) > 1 and len({len(row) for row in rows[dialect]}) == 1]
    named = [dialect for dialect in even if any(map(is_image, rows[dialect][0]))]
    return next(iter([*named, *even, *known]), None)


def file_dialect(file: SourceFile, data: Data, kind: str | None = None) -> Dialect | None:
    """Return the dialect of a text file: as `data` and `kind` (csv, tsv) say, else by its first lines.

    Raises:
        SourceError: data.delimiter does not suit the format.
    """
    first = [line for line in islice(lines(file, "", data.encoding), _LOOKED_AT) if line.strip()]
    if first and (told := _SEPARATOR.fullmatch(first[0].strip())):
        return Dialect(told[1], kind == "csv" if kind else told[1] in _QUOTED)
    seen = seen_dialect(first, data.columns)
    delimiter = data.delimiter
    if delimiter is None:
        delimiter = "\t" if kind == "tsv" else seen.delimiter if seen else "," if kind else None
    if delimiter is None:
        return None
    quoted = kind == "csv" if kind else delimiter in _QUOTED
    if quoted and len(delimiter) > 1:
        advice = "Set data.format=tsv for longer ones."
        raise SourceError(where="data.delimiter", found=delimiter, expected="one character in CSV", advice=advice)
    return Dialect(delimiter, quoted)


def _is_token_file(values: Sequence[str], dialect: Dialect) -> bool:
    return dialect.delimiter == "\t" and len(values) == 2 and _NUMBERED.fullmatch(values[0]) is not None


class DelimitedTable:
    """A file of rows whose first line names the columns, unless data.columns gives their numbers."""

    def __init__(self, file: SourceFile, data: Data, kind: str) -> None:
        self.file, self._encoding = file, data.encoding
        wanted = data.format if data.format in ("csv", "tsv") else None
        self._dialect = file_dialect(file, data, wanted) or Dialect("," if kind == "csv" else "\t", kind == "csv")
        self._columns = data.columns
        self._is_token_file, self._has_names = False, True
        self._names: list[str] = []

    def columns(self) -> list[str]:
        if not self._names:
            top = [values for _, values in islice(self._fields(), 2)]
            if not top:
                raise SourceError(f"{self.file} is empty; expected a line that names the columns, and rows.")
            self._is_token_file = _is_token_file(top[0], self._dialect)
            self._has_names = not self._is_token_file and not _begins_with_data(top, self._columns)
            self._names = ["image", "caption"] if self._is_token_file else _named(top[0], self._has_names)
            if self._has_names:
                check_names(self.file, self._names, self._columns)
        return self._names

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        names = self.columns()
        places = [names.index(name) for name in wanted]
        fields = self._fields()
        if self._has_names:
            next(fields, None)
        for number, (line, values) in enumerate(fields):
            if fault := self._fault(values):
                yield Row(number, f"line {line}", (), fault)
                continue
            if self._is_token_file and (match := _NUMBERED.fullmatch(values[0])):
                values[0] = match[1]
            yield Row(number, f"line {line}", [values[place] for place in places])

    def _fault(self, values: Sequence[str]) -> str:
        """Say why a row cannot be used; nothing where it can."""
        if not self._dialect.quoted and any(map(_is_cut, values)):
            return "a quoted field goes on over the line's end: set data.format=csv if the file is quoted as CSV is"
        if len(values) != len(self._names):
            return f"it has {len(values)} fields, the first line has {len(self._names)}"
        return ""

    def _fields(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each row's first line, from 1, with its fields; empty lines are left out."""
        return self._csv_fields() if self._dialect.quoted else self._plain_fields()

    def _plain_fields(self) -> Iterator[tuple[int, list[str]]]:
        # Lines that end in \r alone are an old Macintosh's; elsewhere it stands within a field.
        first = next(lines(self.file, "", self._encoding), "")
        for number, line in enumerate(
            lines(self.file, "\r" if first.endswith("\r") else "\n", self._encoding), start=1
        ):
            values = self._dialect.fields(line)
            if any(map(str.strip, values)) and not (number == 1 and _SEPARATOR.fullmatch(line.strip())):
                yield number, values

    def _csv_fields(self) -> Iterator[tuple[int, list[str]]]:
        # The limit is the process's; it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        text = lines(self.file, "", self._encoding)
        reader = csv.reader(text, delimiter=self._dialect.delimiter, skipinitialspace=True, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                problem = f"the row that begins here is not CSV ({error})"
                advice = "Is a double quote never closed there? A quote within a quoted field is written twice."
                raise SourceError(problem, path=str(self.file), where=first, advice=advice) from None
            if values is None:
                return
            # Spreadsheets write rows of empty cells; and a line for themselves, see _SEPARATOR.
            is_told = first == 1 and _SEPARATOR.fullmatch(self._dialect.delimiter.join(values))
            if any(map(str.strip, values)) and not is_told:
                yield first, values


def _begins_with_data(top: Sequence[Sequence[str]], columns: Columns) -> bool:
    """Tell whether the first line is a row: columns go by numbers, and what stands there is not their names."""
    if are_usual(top[0], columns):
        return False
    for role, number in columns.numbers():
        first, *more = [row[number - 1] for row in top if number <= len(row)] or [""]
        if role_of(first) == role or (role == "image" and more and is_image(more[0]) and not is_image(first)):
            return False
    return bool(columns.numbers())


def _named(first: Sequence[str], has_names: bool) -> list[str]:
    """Return the names of the columns; one that came before gets its number behind it, as one without a name."""
    names: list[str] = []
    for number, value in enumerate(first, start=1):
        name = value.strip() if has_names else ""
        names.append(name if name and name not in names else f"{name} ({number})" if name else str(number))
    return names


def _is_cut(value: str) -> bool:
    """Tell whether a field begins with a quote that nothing in it closes."""
    return value.startswith('"') and value.count('"') % 2 == 1


def _unwrapped(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    inner = value[1:-1]
    return value if '"' in inner.replace('""', "") else inner.replace('""', '"')
