"""JSON objects as files say them: records, cards, manifests. A stranger's file may be of any kind and any depth."""

from __future__ import annotations

import json
from typing import Any, Final

DEEPEST: Final = 64
"""Levels of objects and lists; what walks a record afterwards (digests, comparisons) does so by recursion."""


def parsed_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Raises:
        ValueError: it is no JSON, no object, or nested deeper than `DEEPEST` levels.
    """
    too_deep = ValueError(f"nested deeper than {DEEPEST} levels")
    try:
        found = json.loads(text)
    except RecursionError:
        raise too_deep from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, expected an object")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        values = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return found
    raise too_deep
