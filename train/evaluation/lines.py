"""The lines of the text files that data sets are published as."""

from __future__ import annotations

from pathlib import Path

from train.evaluation.result import DataSetError


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a UTF-8 file without their ends (\n or \r\n); nothing else ends a line.

    `str.splitlines` would: a sentence may hold U+0085 or U+2028, and files that correspond line by line
    would get out of step.

    Raises:
        DataSetError: the file cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            lines = [line.removesuffix("\n").removesuffix("\r") for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"cannot be read ({error})", path=path, expected="UTF-8 text") from None
    # Line ends of the old Macintosh would make one line of the whole file.
    return lines[0].removesuffix("\r").split("\r") if len(lines) == 1 else lines


def read_rows(path: Path) -> list[str]:
    """Return the lines of a file in which each is a row of its own, without blank ones at its end.

    Raises:
        DataSetError: as `read_lines`.
    """
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def split_line(path: Path, number: int, line: str, columns: int, expected: str, tabs: bool = False) -> list[str]:
    """Return the columns of a line, separated by tabs or by any blanks; there are at least `columns`.

    Raises:
        DataSetError: there are fewer; the message names the file, the line's `number` and what is `expected` there.
    """
    found = line.split("\t" if tabs else None)
    if len(found) < columns:
        raise DataSetError(path=path, where=number, found=line, expected=expected)
    return found
