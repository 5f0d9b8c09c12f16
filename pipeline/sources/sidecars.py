"""Captions in the files beside an image: the same for the members of a tar and the files of a folder.

They are looked for in this order: `.txt`, one caption per line; `.json`, under a usual name of captions; and what
other tools call a caption's file. Other texts (`x.url.txt`, `x.syn.json`) are none of ours.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.sources.caption_values import captions_in, captions_of_lines
from pipeline.sources.json_documents import decode_json
from pipeline.sources.records import Caption, Rejected

OTHER_TEXTS: Final = ("caption", "caption.txt", "text")
"""Looked at where neither `.txt` nor `.json` holds a caption; one caption per line."""
_CAPTION_KEYS: Final = ("caption", "captions", "text", "texts", "sentence", "sentences")
"""Of a `.json`, in any case. Titles and comments are a page's as often as the picture's."""
LARGEST_TEXT: Final = 16 << 20
EXPECTED: Final = "expected a .txt of its name, one caption per line, or a .json with `caption`"
IN_DIFFERENT_FOLDERS: Final = "stand in different folders: put each text beside its image"


def captions_beside(text: str | None, document: str | None) -> tuple[tuple[Caption, ...], Any]:
    """Return the captions in an image's `.txt` and `.json`, and the value of the `.json`.

    A text that the `.json` holds as its one caption is one caption, line breaks and all, as img2dataset writes it.

    Raises:
        Rejected: the `.txt` holds no caption, and the `.json` is none.
    """
    lines = captions_of_lines(text or "")
    try:
        value = decode_json(document) if document is not None else None
    except (ValueError, RecursionError) as error:
        if lines:
            return lines, None
        raise Rejected("malformed-record", f"has a .json that is none ({error})") from None
    said = _captions_of(value)
    if text is not None and len(said) == 1 and isinstance(said[0], str) and said[0].split() == text.split():
        return said, value
    return lines or said, value


def _captions_of(value: Any) -> tuple[Caption, ...]:
    """Return the captions of a `.json`: an object's under the first key that holds any, a text's, a list's."""
    if isinstance(value, dict):
        named = {str(name).lower(): held for name, held in value.items()}
        found = (captions_in(named[name]) for name in _CAPTION_KEYS if named.get(name))
        return next(filter(None, found), ())
    # A list of numbers alone is a box or an embedding.
    texts = value if isinstance(value, list) else [value]
    return captions_in(value) if any(isinstance(item, str | dict) for item in texts) else ()
