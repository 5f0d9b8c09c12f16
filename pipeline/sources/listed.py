"""Data sets whose records are all in lists that fit memory: captions documents, and the lists of published folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.sources.files import Folder, SourceFile, asked, in_usual_order
from pipeline.sources.records import BadRecord, GivenFeatures, Record
from pipeline.sources.texts import lines
from pipeline.sources.unreadable import readable
from stores.errors import SourceError


def file_in(folder: Folder, names: Sequence[str]) -> SourceFile | None:
    """Return the first of some files that a folder has."""
    with readable(folder):
        for name in names:
            if asked(folder.system.isfile, folder.path(name)):
                return folder.file(name)
    return None


def required(folder: Folder, names: Sequence[str], data_set: str) -> SourceFile:
    """Return the first of some files that a folder has.

    Raises:
        SourceError: it has none of them.
    """
    found = file_in(folder, names)
    if found is None:
        raise SourceError(f"{folder} is not {data_set} as published: it has no {' and no '.join(names)}.")
    return found


def by_label(*files: SourceFile) -> dict[str, SourceFile]:
    """Return files by what tells each from the others."""
    return {file.label: file for file in files}


def columns(file: SourceFile, count: int) -> Iterator[list[str]]:
    """Yield the fields of each line, parted by white space, at least `count`; the last holds the rest of the line.

    Raises:
        SourceError: a line has fewer.
    """
    with readable(file):
        for number, line in enumerate(lines(file, "\n"), start=1):
            fields = line.split(maxsplit=count - 1)
            if not fields:
                continue
            if len(fields) < count:
                raise SourceError(
                    path=file.path, where=f"line {number}", found=line.strip(), expected=f"{count} fields"
                )
            yield [*fields[:-1], fields[-1].rstrip()]


class ListedSource:
    """Records that were read from lists, with the features that the data set has.

    Bad entries are kept as such, to be quarantined with their reason.
    """

    def __init__(
        self,
        kind: str,
        files: Mapping[str, SourceFile],
        records: Mapping[str, Sequence[Record | BadRecord]],
        features: Mapping[str, GivenFeatures],
        ids_by_split: bool = False,
    ) -> None:
        """Keep the records of each split; `files` are what they were read from, by name, `kind` their format's name.

        `ids_by_split` says whether ids are unique within a split alone.
        """
        self._kind, self._files, self._records, self._features = kind, files, records, features
        self._ids_by_split = ids_by_split

    @property
    def description(self) -> dict[str, Any]:
        return {"format": self._kind, "files": {name: file.digest() for name, file in self._files.items()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in in_usual_order(self._records) if self._records[split])

    @property
    def features(self) -> Mapping[str, GivenFeatures]:
        return self._features

    def id_scope(self, split: str) -> str:
        return split if self._ids_by_split else ""

    def count(self, split: str) -> int:
        return len(self._records[split])

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        for file in self._files.values():
            file.check_unchanged()
        yield from self._records[split]
        for file in self._files.values():
            file.check_unchanged()
