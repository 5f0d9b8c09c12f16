"""What a source string names: a folder, a file, or the files that a pattern matches; and the splits by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from math import prod
from typing import Final

from braceexpand import braceexpand
from fsspec import AbstractFileSystem

from pipeline.sources.file_names import is_system_file, plain_suffix
from pipeline.sources.files import Folder, SourceFile, asked, in_usual_order, locate, source_file, walk
from pipeline.sources.unreadable import readable
from stores.errors import SourceError

Files = tuple[SourceFile, ...]
_MOST_BRACES: Final = 1_000_000
_RANGE: Final = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})[}.]")
_ASKED_AT_ONCE: Final = 16
_SPLIT_NAME: Final = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)(?![a-z])", re.IGNORECASE)
_SPLIT_WORD: Final = re.compile(rf"(?<![a-z]){_SPLIT_NAME.pattern}", re.IGNORECASE)


def find(url: str) -> Folder | Files:
    """Return the folder that a path or address names, or the files that it or its pattern names, in sorted order.

    Raises:
        SourceError: there is none, or it cannot be reached.
    """
    if not url.strip():
        # To a file system it would be the working folder.
        raise SourceError("data.source (--source) names an empty place. Expected a file, folder, pattern or address.")
    if "{" in url:
        return _expand(url)
    system, path = locate(url)
    with readable(f"The source {url}"):
        if not asked(system.exists, path) and re.search(r"[*?\[]", path):
            return _matches(url, system, path)
        return _literal(system, path)


def _matches(url: str, system: AbstractFileSystem, pattern: str) -> Files:
    found = asked(system.glob, pattern, detail=True)
    files = {str(path): info for path, info in found.items() if info["type"] != "directory"}
    if not files:
        raise SourceError(f"The source {url}: no file matches this pattern. Quote it, so that the shell leaves it.")
    # Splits are looked for in the part of the path that the pattern leaves open.
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"
    matches = [source_file(system, path, path.removeprefix(fixed), files[path]) for path in sorted(files)]
    # A pattern that matches nothing else means these.
    return tuple(file for file in matches if not is_system_file(file.label)) or tuple(matches)


def _expand(url: str) -> Files | Folder:
    """Expand {000..999} and {a,b}, unless a file is really named so."""
    system, path = locate(url)
    with readable(f"The source {url}"):
        if asked(system.exists, path):
            return _literal(system, path)
    urls = _expanded(url)
    fixed = url.partition("{")[0].rpartition("/")[0]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        places = list(threads.map(find, urls))
    files: list[SourceFile] = []
    for one, place in zip(urls, places, strict=True):
        if isinstance(place, Folder):
            raise SourceError(f"The source {one} is a folder; in a pattern, name the files.")
        label = one.removeprefix(fixed).lstrip("/")
        alone = len(place) == 1 and place[0].name == label.rpartition("/")[2]
        files.extend(replace(file, label=label) if alone else file for file in place)
    return tuple(files)


def _expanded(url: str) -> list[str]:
    try:
        # Counted first: braceexpand makes all numbers of a range at once.
        numbers = prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(url))
        urls = list(islice(braceexpand(url), _MOST_BRACES + 1)) if numbers <= _MOST_BRACES else []
    except ValueError:
        raise SourceError(f"The source {url}: a brace is not closed. Expected {{000..999}} or {{a,b}}.") from None
    if not 0 < len(urls) <= _MOST_BRACES:
        raise SourceError(f"The source {url}: its braces name more than {_MOST_BRACES:,} files.")
    return urls


def _literal(system: AbstractFileSystem, path: str) -> Files | Folder:
    info = asked(system.info, path)
    if info["type"] == "directory":
        return Folder(system, path)
    return (source_file(system, path, path.rpartition("/")[2], info),)


def files_below(folder: Folder, endings: tuple[str, ...]) -> Iterator[SourceFile]:
    """Yield the files in a folder and its sub-folders whose names, but for a compression's, end in one of `endings`."""
    with readable(folder):
        for below, files in walk(folder):
            for name, _ in files:
                if plain_suffix(name) in endings:
                    yield folder.file(below + name)


def common_split(name: str) -> str:
    """Return train, val or test for the usual names of those splits, any other name as it is."""
    match = _SPLIT_NAME.fullmatch(name)
    return _short(match) if match else {"restval": "train"}.get(name, name)


def split_in_path(label: str) -> str | None:
    """Return the split that the name of a file, or else of a folder above it, has as a word of its own."""
    for part in reversed(label.split("/")):
        if match := _SPLIT_WORD.search(part):
            return _short(match)
    return None


def _short(match: re.Match[str]) -> str:
    word = match[1].lower()
    return "val" if word.startswith(("val", "dev")) else "train" if word.startswith("train") else "test"


def by_split(files: Iterable[SourceFile]) -> dict[str, Files]:
    """Sort the files of a folder or pattern into splits by their names; those that name none are "train"."""
    splits: dict[str, list[SourceFile]] = {}
    for file in files:
        splits.setdefault(split_in_path(file.label) or "train", []).append(file)
    return {split: tuple(splits[split]) for split in in_usual_order(splits)}
