"""What a cell, a JSON value or a text file says of captions: one text, or a list of texts however it is written.

Tables keep lists in text in several spellings: JSON's, Python's (what pandas writes of a column of lists), numpy's
(no commas). All are read by their string literals alone; nothing is evaluated.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any, Final

from pipeline.sources.base import Caption, Rejected

TEXT_KEYS: Final = ("raw", "caption", "text", "sentence", "value")
"""Under which name an object holds a caption, as Karpathy's `sentences` do; the first that it has is taken."""
_LONGEST_LITERAL: Final = 1 << 20
_TEXT: Final = r"""[uU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_ITEM: Final = rf"(?:{_TEXT}|None|null|nan)"
_LIST: Final = re.compile(
    rf"(?:array\(\s*)?(?:\[\s*(?P<listed>{_ITEM}(?:(?:\s*,\s*|\s*){_ITEM})*+)\s*,?\s*\]"
    rf"(?:,\s*dtype=[^)]*\))?|\(\s*(?P<tuple>{_TEXT}\s*,(?:\s*{_TEXT}\s*,)*+(?:\s*{_TEXT})?)\s*\))",
    re.DOTALL,
)
_ITEMS: Final = re.compile(_ITEM, re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
# A quote behind the bracket, and the bracket closed at the end or never: "['80s music] …" is a caption.
_LOOKS_LISTED: Final = re.compile(r"""(?:array\(\s*)?\[[\[\s]*(?:[uUbB]?['"]|\{\s*['"])(?:[^\]]*|.*[\])])""", re.DOTALL)


def captions_in(value: Any) -> tuple[Caption, ...]:
    """Return the captions in a value: none, a text, an object that holds one, or a list of these.

    A text may itself spell a list. What is none of these stands in the result as a `Rejected` that says so.
    """
    if isinstance(value, str):
        return _in_text(value)
    if value is None or value != value:  # as pandas says that there is none
        return ()
    if isinstance(value, list | tuple):
        return tuple(caption_in(item) for item in value)
    return (caption_in(value),)


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


def captions_of_lines(text: str) -> tuple[str, ...]:
    """Return the captions of a text file: one a line, empty lines left out."""
    return tuple(line for line in (line.rstrip("\r") for line in text.split("\n")) if line)


def kind_of(value: Any) -> str:
    """Say in words of what kind a value is, without showing it."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(str(key)[:40] for key in list(value)[:8]) or '(none)'}"
    names = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    return names.get(type(value), f"of the type {type(value).__name__}")


def _in_text(text: str) -> tuple[Caption, ...]:
    plain = text.strip()
    if not plain.startswith(("[", "(", "array(")):
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
            return [_literal(item[0]) for item in _ITEMS.finditer(match["listed"] or match["tuple"])]
        value = _evaluated(plain)
    if isinstance(value, list) and (not value or any(isinstance(item, str | dict | list) for item in value)):
        return value
    return None


def _literal(item: str) -> str | None:
    if item in ("None", "null", "nan"):
        return None
    return _ESCAPE.sub(_unescaped, item.lstrip("uU")[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        return chr(number) if (number := int(code, 16)) <= 0x10FFFF else match[0]
    return _ESCAPED.get(match[4], match[4] if match[4] in "\\'\"/" else match[0])


def _evaluated(plain: str) -> Any:
    """Return the list of objects in Python's spelling; `ast` builds plain values alone."""
    if not re.match(r"\[\s*\{", plain) or len(plain) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(plain)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
