"""What a cell, a JSON value or a text file says of captions: one text, or a list of texts however it is written.

Tables keep lists in text in several spellings: JSON's, Python's (what pandas writes of a column of lists), numpy's
(no commas). All are read by their string literals alone; nothing is evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from pipeline.sources.records import Caption, Rejected

TEXT_KEYS: Final = ("raw", "caption", "text", "sentence")
"""Under which name an object holds a caption, as Karpathy's `sentences` do; the first that it has is taken."""
_STRING: Final = r"""[uU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_ITEM: Final = rf"(?:(?:(?:np|numpy)\.)?str_\(\s*+{_STRING}\s*+\)|{_STRING}|None|null|nan)"
# Possessive wherever something may repeat: what is not matched at once is given up, not tried at each length.
_ITEMS: Final = rf"{_ITEM}(?:\s*+(?:,\s*+)?{_ITEM})*+\s*+(?:,\s*+)?"
# Behind `array(`, `Index(`, `frozenset(`: what numpy, pandas and Python put around a list; behind `c(`, as R does.
_LIST: Final = re.compile(
    rf"(?:\w+\(\s*+)?(?P<listed>\[\s*+(?:{_ITEMS})\]|\{{\s*+(?:{_ITEMS})\}})(?:,\s*+\w++=[^()]*+)?\s*+\)?"
    rf"|c?(?P<tuple>\(\s*+{_STRING}\s*+,(?:\s*+{_STRING}\s*+,)*+(?:\s*+{_STRING})?\s*+\))",
    re.DOTALL,
)
_LITERAL: Final = re.compile(rf"({_STRING})|None|null|nan", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_OBJECTS: Final = re.compile(r"(?:\w+\(\s*)?(?:\[\s*)?\{\s*['\"]\w+['\"]\s*:.*\}\s*\]?.*", re.DOTALL)
# A quote behind the bracket, and before the last bracket or a comma or never closed: "['80s music] …" is a caption.
_LOOKS_LISTED: Final = re.compile(
    r"""(?:\w++\(\s*+)*+[\[{][\[{(\s]*+(?:\w++\(\s*+(?:\[\s*+)?)?[uUbB]?(['"])"""
    r"""(?:[^\]}]*|.*['")]\s*+(?:,\s*+)?[\])}]++|.*['"]\s*+[,:]\s*+['"\[].*)""",
    re.DOTALL,
)


def captions_in(value: Any) -> tuple[Caption, ...]:
    """Return the captions in a value: none, a text, an object that holds one, or a list of these.

    A text may itself spell a list. What is none of these stands in the result as a `Rejected` that says so.
    """
    if isinstance(value, str):
        return _in_text(value)
    if value is None or value != value:  # as pandas says that there is none
        return ()
    if isinstance(value, dict):
        value = _listed_in(value)
    if isinstance(value, list | tuple):
        return tuple(caption_in(item) for item in value)
    return (caption_in(value),)


def captions_at(place: str, value: Any) -> tuple[Caption, ...]:
    """Return `captions_in` a value; those that are none name its place."""
    return tuple(
        Rejected(caption.reason, f"{place} {caption.detail}") if isinstance(caption, Rejected) else caption
        for caption in captions_in(value)
    )


def caption_in(value: Any) -> Caption:
    """Return the one caption in a value: a text, or an object that holds one."""
    if isinstance(value, dict):
        held = [value[key] for key in TEXT_KEYS if key in value]
        value = next((one for one in held if one is not None), held[0] if held else value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return Rejected("empty-caption", "a caption is null")
    return Rejected("malformed-caption", f"a caption is {kind_of(value)}, expected text")


def _listed_in(value: dict[str, Any]) -> list[Any]:
    """Return the list of captions that an object holds under a usual key; else the object itself, as the one item."""
    held = next((value[key] for key in TEXT_KEYS if value.get(key)), None)
    return held if isinstance(held, list) else [value]


def captions_of_lines(text: str) -> tuple[Caption, ...]:
    """Return the captions of a text file: one per line, blank lines left out; a line alone may spell a list."""
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    return _in_text(lines[0]) if len(lines) == 1 else lines


def kind_of(value: Any) -> str:
    """Say in words of what kind a value is, without showing it."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(str(key)[:40] for key in list(value)[:8]) or '(none)'}"
    names = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    if isinstance(value, str):
        return "text" if value.strip() else "no text"
    return names.get(type(value), f"a value of the type {type(value).__name__}")


def _in_text(text: str) -> tuple[Caption, ...]:
    plain = text.strip()
    if not any(sign in plain[:16] for sign in "[({") and plain[:2] not in ('"[', '"{'):
        return (text,)
    items = _items(plain)
    if items is not None:
        return tuple(caption_in(item) for item in items)
    if not _LOOKS_LISTED.fullmatch(plain):
        return (text,)  # "[music] …", "(a dog)": the brackets are the caption's own
    return (
        Rejected(
            "malformed-caption",
            f"a caption looks like a list of texts and cannot be read as one: {plain[:60]!r}; "
            f"expected a JSON list, or Python's spelling of one",
        ),
    )


def _items(plain: str) -> Sequence[Any] | None:
    """Return the items of the list that a text spells; None if it spells none, or one of numbers alone."""
    try:
        value = json.loads(plain)
    except (ValueError, RecursionError):
        if match := _LIST.fullmatch(plain):
            return [_literal(item[1]) for item in _LITERAL.finditer(match["listed"] or match["tuple"])]
        return _objects(plain)
    if isinstance(value, str):  # a list that was written as JSON twice
        return _items(value) if value[:1] in "[{" else None
    if isinstance(value, dict):
        value = _listed_in(value)
    if isinstance(value, list) and (not value or any(isinstance(item, str | dict | list) for item in value)):
        return value
    return None


def _literal(string: str | None) -> str | None:
    return None if string is None else _ESCAPE.sub(_unescaped, string.lstrip("uU")[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        return chr(number) if (number := int(code, 16)) <= 0x10FFFF else match[0]
    return _ESCAPED.get(match[4], match[4] if match[4] in "\\'\"/" else match[0])


def _objects(plain: str) -> Sequence[str | None] | None:
    """Return the texts of objects in Python's or numpy's spelling, under the first usual key that they have."""
    if not _OBJECTS.fullmatch(plain):
        return None
    for key in TEXT_KEYS:
        found = re.findall(rf"""['"]{key}['"]\s*:\s*({_STRING})""", plain, re.DOTALL)
        if found:
            return [_literal(string) for string in found]
    return None
