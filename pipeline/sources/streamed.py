"""A data set of files, each read from its beginning to its end as often as it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pipeline.sources.file_names import stem_and_ending
from pipeline.sources.files import SourceFile
from pipeline.sources.places import Files
from pipeline.sources.records import BadRecord, Record, Source
from pipeline.sources.unreadable import readable
from stores.digests import value_digest
from stores.errors import SourceError

ReadRecords = Callable[[SourceFile, str, str], Iterator[Record | BadRecord]]
"""Reads a file's records; given with the file what goes before ids that are unique only within it, and the split."""
_SUMMED: Final = ("csv", "tsv", "jsonl")
"""Formats whose files are told apart by checksums; of the others, which hold images, by size and time of change."""


class StreamedSource(Source):
    """Files of one format in splits; no file may change between the first look at it and the end of the last pass."""

    def __init__(self, kind: str, splits: Mapping[str, Files], read: ReadRecords) -> None:
        self._kind, self._files, self._read = kind, dict(splits), read

    @property
    def description(self) -> dict[str, Any]:
        return {"format": self._kind, "files": {split: self._describe(files) for split, files in self._files.items()}}

    def _describe(self, files: Files) -> dict[str, Any]:
        facts = [[file.label, file.digest(whole=False) if self._kind in _SUMMED else file.version] for file in files]
        return {"count": len(files), "first": files[0].label, "digest": value_digest(facts)}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._files)

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        files = self._files[split]
        shared = os.path.commonpath([f"/{file.label}".rpartition("/")[0] + "/" for file in files]).rstrip("/")
        for file in files:
            own_name = stem_and_ending(f"/{file.label}".removeprefix(f"{shared}/"))[0]
            yield from self._file_records(file, f"{own_name}/" if len(files) > 1 else "", split)
        # Not only each after its own end: what was read of the first may have changed meanwhile.
        for file in files:
            file.check_unchanged()

    def _file_records(self, file: SourceFile, prefix: str, split: str) -> Iterator[Record | BadRecord]:
        file.check_unchanged()
        try:
            with readable(file):
                yield from self._read(file, prefix, split)
        except SourceError:
            # A file that changes seems damaged where it is read.
            file.check_unchanged()
            raise
