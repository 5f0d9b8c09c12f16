"""What a check is: it looks at one thing after another and collects the faults of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from stores.digests import file_digest

AGAIN: Final = "Run cusa-extract again with the same parameters: it repairs this and leaves the rest."


@dataclass(frozen=True)
class Fault:
    """One damaged thing: its file within the store, what was found against what was expected, what to do."""

    file: str
    found: str
    remedy: str = AGAIN


@dataclass
class Check:
    """A check of `things`, of each of which `look` yields the faults; it may leave a note."""

    name: str
    things: Sequence[Any]
    look: Callable[[Any], Iterable[Fault]]
    count: Callable[[Any], int] = lambda thing: 1
    """As how many a thing counts."""
    needs: Sequence[Check] = ()
    """What a damaged file points at means nothing: left out where these found damage."""
    counted: int = 0
    faults: list[Fault] = field(default_factory=list)
    note: str = ""

    def run(self, progress: Progress) -> None:
        if damaged := [fault.file for check in self.needs for fault in check.faults]:
            self.note = f"left out: {', '.join(damaged)} is damaged"
            return
        task = progress.add_task(self.name, total=sum(map(self.count, self.things)), note="")
        for thing in self.things:
            self.faults += self.look(thing)
            self.counted += self.count(thing)
            note = f"{len(self.faults)} damaged" if self.faults else ""
            progress.update(task, completed=self.counted, note=note)


def digest_fault(path: Path, expected: str) -> str | None:
    """Return how the file at `path` differs from the SHA-256 that the manifest says, or None where it does not."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which no reader follows"
    try:
        found = file_digest(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == expected else f"sha256 {found[:12]}…, the manifest says {expected[:12]}…"
