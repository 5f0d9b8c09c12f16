"""What a command may replace or remove in a folder: files that it wrote itself, and nothing of a person's.

A command lists the files it writes as `Kinds`: each by the pattern of its path within the folder, with a test of
whether a file of that name is as the command left it. Links are never followed, and what is neither listed nor passes
its test is a person's: it stays where it is, or the command refuses the folder and names it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from stores.atomic import TEMPORARY, write_text
from stores.console import console
from stores.errors import DamagedStoreError
from stores.json_objects import parsed_object

Kinds = Mapping[str, Callable[[Path], bool]]
"""By regular expressions for the parts of its path within the folder, with slashes between: is this file ours?"""

SOFTWARE: Final = {"Software": "cusa"}
"""What a drawing of ours says of its maker, in its PNG's text."""
_SIGNATURE: Final = re.compile(rb"<!-- cusa sha256:([0-9a-f]{64}) -->\n\Z")


def is_plain(path: Path) -> bool:
    """Tell whether `path` is a regular file itself, not a link to one."""
    return path.is_file() and not path.is_symlink()


def check_plain(path: Path) -> None:
    """See that a file of a store is no link: a stranger's store would show whatever lies elsewhere on this machine.

    Raises:
        DamagedStoreError: it is one.
    """
    if path.is_symlink():
        found, advice = str(path.readlink()), "Where you trust it, put the file itself in its place: cp -rL copies so."
        raise DamagedStoreError("a link", path=path, found=found, expected="the file itself", advice=advice)


def write_signed(path: Path, text: str) -> None:
    """Write a page (Markdown or HTML) that ends with its checksum; a person's, or one that was changed, stays.

    Half of a surrogate pair becomes a question mark.
    """
    if os.path.lexists(path) and not (is_plain(path) and is_signed(path)):
        console.print(
            f"Not written: {path} is not as this command left it, and stays. Move it elsewhere.", style="yellow"
        )
        return
    body = text.encode("utf-8", "replace").decode()
    write_text(path, f"{body}<!-- cusa sha256:{hashlib.sha256(body.encode()).hexdigest()} -->\n")


def is_signed(path: Path) -> bool:
    """Tell whether a page is byte for byte as `write_signed` wrote it."""
    data = path.read_bytes()
    found = _SIGNATURE.search(data)
    return found is not None and hashlib.sha256(data[: found.start()]).hexdigest() == found[1].decode()


def holds(*keys: str) -> Callable[[Path], bool]:
    """Return a test of whether a file is a JSON object that has these keys."""
    return lambda path: set(keys) <= json_object(path).keys()


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none."""
    try:
        return parsed_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_our_drawing(path: Path) -> bool:
    """Tell whether a picture says that we drew it."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE["Software"]
    except (OSError, ValueError):
        return False


def is_ours(root: Path, path: Path, kinds: Kinds) -> bool:
    """Tell whether the file at `path`, below `root`, was written by the command of these kinds."""
    test = _test(path.relative_to(root).as_posix(), kinds)
    return test is not None and is_plain(path) and test(path)


def ours_below(root: Path, kinds: Kinds) -> list[Path]:
    """Return the files below `root` that the command of these kinds wrote."""
    return [path for path in _below(root, kinds) if is_ours(root, path, kinds)]


def in_the_way(root: Path, kinds: Kinds) -> list[str]:
    """Return the paths within `root` that the command would write, and where something else lies than its own file.

    Folders that it would write into are in the way where they are links, which lead out, or files.
    """
    found = []
    for path in _below(root, kinds):
        place = path.relative_to(root).as_posix()
        if _test(place, kinds) is not None:
            if not is_ours(root, path, kinds):
                found.append(place)
        elif (path.is_symlink() or not path.is_dir()) and _is_folder_of(place, kinds):
            found.append(place)
    return sorted(found)


def remove_ours(root: Path, kinds: Kinds) -> None:
    """Remove what the command of these kinds wrote below `root`, and the folders that this leaves empty."""
    for path in ours_below(root, kinds):
        path.unlink()
        for folder in path.parents:
            if folder == root or any(folder.iterdir()):
                break
            folder.rmdir()


def leftovers(root: Path, kinds: Kinds) -> list[Path]:
    """Return the temporary files, below `root`, of files of these kinds, which a killed run left."""
    found = [path for path in _below(root, kinds) if TEMPORARY.search(path.name) and is_plain(path)]
    return [path for path in found if _test(TEMPORARY.sub("", path.relative_to(root).as_posix()), kinds) is not None]


def remove_leftovers(root: Path, kinds: Kinds) -> None:
    """Remove the `leftovers`; whoever holds the folder's lock may."""
    for path in leftovers(root, kinds):
        path.unlink()


def _test(place: str, kinds: Kinds) -> Callable[[Path], bool] | None:
    return next((test for pattern, test in kinds.items() if re.fullmatch(pattern, place)), None)


def _is_folder_of(place: str, kinds: Kinds) -> bool:
    """Tell whether files of these kinds may lie in, or further below, the folder at `place`."""
    parts = place.split("/")
    patterns = (pattern.split("/")[:-1] for pattern in kinds)
    return any(len(parts) <= len(known) and all(map(re.fullmatch, known, parts)) for known in patterns)


def _below(root: Path, kinds: Kinds) -> Iterator[Path]:
    """Yield what lies in `root`, and in the folders below it that these kinds have; a link is yielded, not followed."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in (*folders, *files))
        folders[:] = [name for name in folders if _is_folder_of(Path(folder, name).relative_to(root).as_posix(), kinds)]
