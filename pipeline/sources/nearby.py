"""What to do about an image that is not where the data set says: where a file of nearly that name lies."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

from pipeline.sources.files import Folder, asked, entries
from pipeline.sources.image_endings import IMAGE_ENDINGS

_MOST_FOLDERS: Final = 16


def advice(folder: Folder, name: str) -> str:
    """Return what to change so that `name` is found in `folder`, after a semicolon; nothing where nothing is near.

    Only a local folder is looked through: elsewhere each look would be a request.
    """
    if not folder.is_local:
        return ""
    slashed = name.replace("\\", "/")
    if slashed != name and _is_there(folder, slashed):
        return r"; it is there with / in place of \: write the names so"
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, slashed)
        if other != slashed and _is_there(folder, other):
            return f"; a file of the same letters is there, in Unicode's form {form}: write the names so, or the files"
    *above, last = slashed.split("/")
    if above and _is_there(folder, last):
        if f"/{folder.root}".endswith(f"/{'/'.join(above)}"):
            return f"; {last} is in the folder itself: set data.images (--images) to the folder above"
        return f"; {last} is there, without {'/'.join(above)}/: leave that out of the names"
    if slashed.strip() != slashed and _is_there(folder, slashed.strip()):
        return "; it is there without the blanks around its name: write it so"
    for ending in IMAGE_ENDINGS:
        if _is_there(folder, f"{slashed}.{ending}"):
            return f"; {last}.{ending} is there: write the names with their ending"
    for inner in _folders(folder):
        if _is_there(folder, f"{inner}/{slashed}"):
            return f"; it is in {inner}/: set data.images (--images) to {folder.path(inner)}"
    near = _same_but_case(folder, "/".join(above)).get(last.lower())
    return f"; {near} is there: upper and lower case differ" if near else ""


def _is_there(folder: Folder, name: str) -> bool:
    try:
        return bool(asked(folder.system.isfile, folder.path(name)))
    except OSError:
        return False


@lru_cache(maxsize=16)
def _folders(folder: Folder) -> tuple[str, ...]:
    try:
        return tuple(entries(folder)[0][:_MOST_FOLDERS])
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _same_but_case(folder: Folder, below: str) -> dict[str, str]:
    try:
        return {name.lower(): name for name, _ in entries(Folder(folder.system, folder.path(below)))[1]}
    except OSError:
        return {}
