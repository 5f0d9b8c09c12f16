"""What a check is: it looks at one thing after another and yields the faults of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stores.digests import file_digest

AGAIN: Final = "Run cusa-extract again with the same parameters: it repairs this and leaves the rest."


@dataclass(frozen=True)
class Fault:
    """One damaged thing: its file within the store, what was found against what was expected, what to do."""

    file: str
    found: str
    remedy: str


@dataclass
class Check:
    """A check over `total` things; `run` yields the faults of each, and may leave a note."""

    name: str
    total: int
    run: Callable[[Check], Iterator[Sequence[Fault]]]
    counted: int = 0
    faults: list[Fault] = field(default_factory=list)
    note: str = ""


def digest_fault(path: Path, expected: str, named_by: str) -> str | None:
    """Return how the file at `path` differs from the SHA-256 `expected`, or None where it does not."""
    try:
        found = file_digest(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == expected else f"sha256 {found[:12]}…, {named_by} says {expected[:12]}…"


def only_if_whole(tables: Check, check: Check, faults: Iterator[Sequence[Fault]]) -> Iterator[Sequence[Fault]]:
    """Yield `faults` unless the check of the `tables` found damage: what a damaged table points at means nothing."""
    if tables.faults:
        check.note = f"left out: {', '.join(fault.file for fault in tables.faults)} is damaged"
        return
    yield from faults
