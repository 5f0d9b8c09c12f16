"""What the entries of captions documents share: their ids, and what is said of entries that cannot be taken."""

from __future__ import annotations

from typing import Any, Final

from pipeline.sources.caption_values import captions_in, kind_of
from pipeline.sources.records import BadRecord, Caption, Rejected

Id = int | str
_EXACT: Final = 2**53
"""Beyond it, a float may stand for several whole numbers."""


def id_in(value: Any) -> Id | None:
    """Return the id in a value: text or a whole number, also one that was written as 17.0; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def captions_of(entry: dict[str, Any], place: str) -> tuple[Caption, ...]:
    """Return the captions under an entry's `caption`, at least one; those that are none name its place."""
    if "caption" not in entry:
        return (Rejected("malformed-caption", f"{place} {fault_of(entry, 'caption', 'text')}"),)
    found = captions_in(entry["caption"]) or (Rejected("empty-caption", "its caption is null or empty"),)
    return tuple(
        Rejected(text.reason, f"{place}: {text.detail}") if isinstance(text, Rejected) else text for text in found
    )


def malformed(source_id: str, detail: str, captions: int = 0) -> BadRecord:
    """Return an entry that is not as it must be; `captions` are lost with it."""
    return bad(source_id, "malformed-record", detail, captions)


def bad(source_id: str, reason: str, detail: str, captions: int = 0) -> BadRecord:
    """Return an entry that cannot be taken; `captions` are lost with it."""
    return BadRecord(source_id=source_id, rejected=Rejected(reason, detail), captions=captions)


def fault_of(entry: dict[str, Any], key: str, expected: str) -> str:
    """Say in what an entry's value is not what is expected."""
    return f"has no {key}, expected {expected}" if key not in entry else f"has a {key} that is {kind_of(entry[key])}"
