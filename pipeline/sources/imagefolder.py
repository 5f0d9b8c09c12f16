"""A folder of images, each with its captions in a file beside it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final, NamedTuple

from pipeline.sources.caption_values import captions_of_lines
from pipeline.sources.file_names import is_image, stem_and_ending
from pipeline.sources.files import Folder, entries, in_usual_order, walk
from pipeline.sources.image_files import ImageFile
from pipeline.sources.places import common_split
from pipeline.sources.records import BadRecord, Caption, Record, Rejected, Source
from pipeline.sources.sidecars import (
    EXPECTED,
    IN_DIFFERENT_FOLDERS,
    LARGEST_TEXT,
    OTHER_TEXTS,
    captions_beside,
)
from pipeline.sources.texts import decoded
from pipeline.sources.unreadable import readable

_TEXTS_AT_ONCE: Final = 64
_TEXTS: Final = (".txt", ".json")
_MOST_LOOKS: Final = 3
"""How often the folder is looked through for what a sample lacks, until it shows something."""
_Files = Sequence[tuple[str, str | None]]
"""Names and versions, sorted by stem and then ending."""


class _Sample(NamedTuple):
    """The names of an image and of the texts beside it; or a text without an image, whose name is ""."""

    image: str
    listed: str | None
    text: str | None
    document: str | None = None
    other: str | None = None


class FolderSource(Source):
    """Images and texts in a folder's own order; one sub-folder at a time is listed."""

    def __init__(self, folders: dict[str, Folder], named: bool, encoding: str | None, require: Collection[str]) -> None:
        """Take folders by split; one that is not `named` is divided by its sub-folders train, val and test.

        `require` says what each sample must have: image, text.
        """
        self._named, self._encoding, self._folders, self._require = named, encoding, folders, require
        self._parts = (
            {split: [(folder, "", True)] for split, folder in folders.items()} if named else _parts(*folders.values())
        )

    @property
    def description(self) -> dict[str, Any]:
        return {"format": "folder", "folders": {split: str(folder) for split, folder in self._folders.items()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def id_scope(self, split: str) -> str:
        # Ids are paths within the folder.
        return split if self._named else ""

    def records(self, split: str) -> Iterator[Record | BadRecord]:
        for folder, below, deep in self._parts[split]:
            reader = _SampleReader(folder, self._encoding, self._require)
            with readable(folder):
                for inner, files in walk(folder, below):
                    yield from reader.records(inner, files)
                    if not deep:
                        break


def _parts(folder: Folder) -> dict[str, list[tuple[Folder, str, bool]]]:
    """Divide a folder into splits: their sub-folders, and whether these are searched to the bottom."""
    with readable(folder):
        names, files = entries(folder)
    usual = [name for name in names if common_split(name) in ("train", "val", "test")]
    parts: dict[str, list[tuple[Folder, str, bool]]] = {}
    if any(is_image(name) for name, _ in files) or not usual:
        parts["train"] = [(folder, "", not usual)]
    for name in names if usual else ():
        parts.setdefault(common_split(name) if name in usual else "train", []).append((folder, f"{name}/", True))
    return {split: parts[split] for split in in_usual_order(parts)}


class _SampleReader:
    """Makes records of a folder's files."""

    def __init__(self, folder: Folder, encoding: str | None, require: Collection[str]) -> None:
        self._folder, self._encoding, self._require = folder, encoding, require
        self._elsewhere, self._looks = "", _MOST_LOOKS

    def records(self, below: str, files: _Files) -> Iterator[Record | BadRecord]:
        """Yield the samples of one folder, whose path below the source is `below`."""
        samples = _samples(files)
        while some := list(islice(samples, _TEXTS_AT_ONCE)):
            texts = self._texts(below, (sample.text for sample in some))
            texts |= self._texts(below, (name for sample in some for name in _further(sample, texts)))
            for sample in some:
                yield self._record(below, sample, texts)

    def _record(self, below: str, sample: _Sample, texts: dict[str, str | Rejected]) -> Record | BadRecord:
        name = sample.image or sample.text or ""
        captions: tuple[Caption, ...] = ()
        try:
            captions = _captions(sample, texts)
            if not sample.image and "image" in self._require:
                raise Rejected("missing-file", f"has no image of its name beside it{self._look(below, name)}")
            if not captions and (not sample.image or "text" in self._require):
                raise Rejected("no-captions", f"has no caption{self._look(below, name)}; {EXPECTED}")
        except Rejected as fault:
            rejected = Rejected(fault.reason, f"{self._folder.path(below)}{name} {fault.detail}")
            return BadRecord(source_id=f"{below}{name}", rejected=rejected, captions=len(captions))
        image = ImageFile(self._folder, f"{below}{name}", sample.listed) if sample.image else None
        return Record(source_id=f"{below}{name}", captions=captions, image=image)

    def _texts(self, below: str, names: Iterable[str | None]) -> dict[str, str | Rejected]:
        """Read some texts at once: over a network they come side by side."""
        wanted = list(dict.fromkeys(name for name in names if name is not None))
        found = self._folder.contents([below + name for name in wanted], LARGEST_TEXT + 1)
        return {name: self._text(name, content) for name, content in zip(wanted, found, strict=True)}

    def _text(self, name: str, content: bytes | Exception) -> str | Rejected:
        if isinstance(content, bytes) and len(content) <= LARGEST_TEXT:
            return decoded(content, self._encoding)
        why = content if isinstance(content, Exception) else "it has more than 16 MiB"
        return Rejected("unreadable-file", f"has a text {name} that cannot be read: {why}")

    def _look(self, below: str, name: str) -> str:
        """Say which file of the same stem, in another folder, the first samples lack."""
        if self._looks and not self._elsewhere:
            self._looks -= 1
            stem = stem_and_ending(name)[0]
            for inner, files in walk(self._folder):
                same = [(stem_and_ending(other)[1].lower(), other) for other, _ in _of_stem(files, stem)]
                kinds = {is_image(other): other for ending, other in same if is_image(other) or ending in _TEXTS}
                if inner != below and list(kinds) == [not is_image(name)]:
                    (found,) = kinds.values()
                    self._elsewhere = f"; {below}{name} and {inner}{found} {IN_DIFFERENT_FOLDERS}"
                    break
        return self._elsewhere


def _further(sample: _Sample, texts: dict[str, str | Rejected]) -> Iterator[str | None]:
    """Yield the texts to read beside the `.txt`: where it holds several captions, or none."""
    text = texts.get(sample.text or "", "")
    lines = len(captions_of_lines(text)) if isinstance(text, str) else 1
    if lines != 1:
        yield sample.document
    if lines == 0:
        yield sample.other


def _captions(sample: _Sample, texts: dict[str, str | Rejected]) -> tuple[Caption, ...]:
    """Return a sample's captions; raises the `Rejected` of a text that cannot be read."""
    found = [texts.get(name or "") for name in sample[2:]]
    if fault := next((text for text in found if isinstance(text, Rejected)), None):
        raise fault
    text, document, other = (text if isinstance(text, str) else None for text in found)
    return captions_beside(text, document)[0] or captions_of_lines(other or "")


def _samples(files: _Files) -> Iterator[_Sample]:
    """Yield every image with its texts, and every text that neither an image nor another of its texts is beside."""
    for stem, group in groupby(files, key=lambda file: stem_and_ending(file[0])[0]):
        same = list(group)
        called = {stem_and_ending(name)[1].lower(): name for name, _ in reversed(same)}
        text, document = called.get(".txt"), called.get(".json")
        images = [(name, listed) for name, listed in same if is_image(name)]
        if images:
            others = () if text else (_named(files, f"{stem}.{name}") for name in OTHER_TEXTS)
            other = next(filter(None, others), None)
            yield from (_Sample(name, listed, text, document, other) for name, listed in images)
        elif text is not None and not _is_sidecar(files, stem):
            yield _Sample("", None, text)


def _is_sidecar(files: _Files, stem: str) -> bool:
    """Tell whether a text `x.y.txt` belongs to an image `x.jpg`, with whose captions it has nothing to do."""
    while stem := stem.rpartition(".")[0]:
        if any(is_image(name) for name, _ in _of_stem(files, stem)):
            return True
    return False


def _named(files: _Files, name: str) -> str | None:
    """Return the file of this name, whatever the case of its ending."""
    return next((held for held, _ in _of_stem(files, stem_and_ending(name)[0]) if held.lower() == name.lower()), None)


def _of_stem(files: _Files, stem: str) -> _Files:
    def parts(file: tuple[str, str | None]) -> tuple[str, str]:
        return stem_and_ending(file[0])

    return files[bisect_left(files, (stem, ""), key=parts) : bisect_right(files, (stem, "\U0010ffff"), key=parts)]
