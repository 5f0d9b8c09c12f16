"""WebDataset tars, as img2dataset and others write them: an image and what holds its captions, under one key.

Headers and captions are read, images are not: a record keeps the place of its image in the tar. A tar that is cut
short or damaged gives what is whole, and then a bad record that names the place.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.caption_values import captions_of_lines, kind_of
from pipeline.sources.file_names import IMAGE_ENDINGS
from pipeline.sources.files import BLOCK, SourceFile
from pipeline.sources.image_files import StoredImage
from pipeline.sources.records import BadRecord, Record, Rejected
from pipeline.sources.sidecars import EXPECTED, IN_DIFFERENT_FOLDERS, LARGEST_TEXT, OTHER_TEXTS, captions_beside
from pipeline.sources.tarmembers import Damaged, Member, tar_members
from pipeline.sources.texts import decoded

_TEXT_KINDS: Final = ("txt", "json", "caption", "text")
_MOST_NAMESAKES: Final = 100
_MOST_MEMBERS: Final = 1_000
"""Under one key: more are no sample, and not held."""
_MOST_LOOKS: Final = 3
"""How often a tar is looked through for what a sample lacks, until it shows something."""
_DOTTED: Final = "(is there a dot in its key? it ends at the first)"
# Locally a seek is free. Over a network a request costs as much time as a megabyte: smaller images are read over.
_LOCAL_BLOCK: Final = 16 << 10


class _Incomplete(Rejected):
    """A sample lacks its image or its captions: a member of one of the `wanted` kinds would hold it."""

    def __init__(self, reason: str, detail: str, wanted: Sequence[str], captions: int = 0) -> None:
        super().__init__(reason, detail)
        self.wanted, self.captions = wanted, captions


def tar_records(
    file: SourceFile, prefix: str, encoding: str | None, require: Collection[str]
) -> Iterator[Record | BadRecord]:
    """Yield the samples of a tar, in its order; `require` says what each must have: image, text.

    `prefix`, the tar's name and a slash, goes before its keys unless they begin with it, as img2dataset's do.

    Raises:
        SourceError: the file is no tar at all.
        OSError: it cannot be read.
    """
    with file.open(_LOCAL_BLOCK if isinstance(file.system, LocalFileSystem) else BLOCK) as stream:
        reader = _SampleReader(file, stream, prefix, encoding, require)
        held: list[Member] = []
        others: list[str] = []
        try:
            for member in tar_members(file, stream):
                if not member.key:
                    others = [*others[:1], member.name]
                    continue
                if held and held[0].key != member.key:
                    yield reader.record(held)
                    held = []
                if len(held) < _MOST_MEMBERS:
                    held.append(member)
        except Damaged as damage:
            with suppress(Rejected):
                yield reader.sample(held)
            yield BadRecord(source_id=file.label, rejected=Rejected("truncated-file", f"{file}: {damage}"))
        else:
            if held:
                yield reader.record(held)
            elif others:
                found = f"{file} holds no file that could belong to a sample, such as 0001.jpg: it has {others[0]!r}"
                yield BadRecord(source_id=file.label, rejected=Rejected("malformed-record", found))


class _SampleReader:
    """Makes records of a tar's members."""

    def __init__(
        self, file: SourceFile, stream: io.BufferedReader, prefix: str, encoding: str | None, require: Collection[str]
    ) -> None:
        self._file, self._stream, self._encoding, self._require = file, stream, encoding, require
        self._prefix, self._stem = prefix, prefix.removesuffix("/")
        self._layout, self._looks = _Finding(), _MOST_LOOKS

    def record(self, members: Sequence[Member]) -> Record | BadRecord:
        """Return the record of the members under one key."""
        key, lost = members[0].key, 0
        try:
            return self.sample(members)
        except _Incomplete as lack:
            fault, lost = self._explained(members, lack), lack.captions
            if fault.reason == "not-adjacent":
                # Its other members come under the same key, and are no duplicates.
                key = members[0].name
        except Rejected as rejected:
            fault = rejected
        detail = f"{self._file}, at byte {members[0].offset}: {members[0].key} {fault.detail}"
        return BadRecord(source_id=self._unique(key), rejected=Rejected(fault.reason, detail), captions=lost)

    def sample(self, members: Sequence[Member]) -> Record:
        if len(members) == _MOST_MEMBERS:
            raise Rejected("malformed-record", f"has {_MOST_MEMBERS:,} members or more {_DOTTED}")
        sound = [member for member in members if not member.flaw]
        image = _image(sound)
        stem = image.stem if image else ""
        document = self._text(_called(sound, stem, "json"))
        captions, facts = captions_beside(self._text(_called(sound, stem, "txt")), document)
        if not captions:
            others = filter(None, (_called(sound, stem, name) for name in OTHER_TEXTS))
            captions = captions_of_lines(self._text(next(others, None)) or "")
        listed = ", ".join(f".{member.ending}" for member in members[:20])
        if image is None and ("image" in self._require or any(member.kind in IMAGE_ENDINGS for member in members)):
            raise _Incomplete("malformed-record", f"has no image among {listed}", IMAGE_ENDINGS, len(captions))
        if not captions and "text" in self._require:
            has = listed if document is None else f"{listed} (its .json is {kind_of(facts)})"
            raise _Incomplete("no-captions", f"has no caption among {has}", _TEXT_KINDS)
        key = facts["key"] if isinstance(facts, dict) and isinstance(facts.get("key"), str) else members[0].key
        stored = image and StoredImage(self._file, image.offset, image.size)
        return Record(source_id=self._unique(key), captions=captions, image=stored)

    def _explained(self, members: Sequence[Member], lack: _Incomplete) -> Rejected:
        """Say why a sample lacks its image or captions, as far as its members or the whole tar tell."""
        for member in members:
            if member.flaw and member.kind in lack.wanted:
                return Rejected("member-without-bytes", f"has a .{member.ending} that is {member.flaw}")
        if self._looks and not self._layout.words:
            self._looks -= 1
            self._layout = _look_through(self._file, self._stream, members, lack.wanted)
        reason, words = self._layout
        if reason:
            return Rejected(reason, words)
        advice = f"; {EXPECTED}" if lack.wanted is _TEXT_KINDS else ""
        return Rejected(lack.reason, f"{lack.detail}{words}{advice}")

    def _text(self, member: Member | None) -> str | None:
        if member is None:
            return None
        if member.size > LARGEST_TEXT:
            raise Rejected("malformed-record", f"has a .{member.ending} of {member.size:,} bytes")
        self._stream.seek(member.offset)
        return decoded(self._stream.read(member.size), self._encoding)

    def _unique(self, key: str) -> str:
        # img2dataset numbers samples after their tar, 000123456 in 00012.tar; but 10 may be in 1.tar and in 10.tar.
        is_told = len(self._stem) > 4 and key.startswith(self._stem) and key != self._stem
        return key if is_told else self._prefix + key


def _image(members: Sequence[Member]) -> Member | None:
    """Return the image: the one that is called just so, else the one with a text of its own, else the only one."""
    images = [member for member in members if member.kind in IMAGE_ENDINGS]
    told = {member.stem.lower() for member in members if member.kind in _TEXT_KINDS}
    plain = [image for image in images if not image.stem]
    likely = plain or [image for image in images if image.stem.lower() in told and "" not in told] or images
    if len(likely) > 1:
        names = ", ".join(f".{image.ending}" for image in likely[:20])
        raise Rejected(
            "malformed-record", f"has the images {names}: expected one, or one without a second dot {_DOTTED}"
        )
    return next(iter(likely), None)


def _called(members: Sequence[Member], stem: str, name: str) -> Member | None:
    """Return the member called `name` beside an image of this stem: by the image's own name, else by the key alone."""
    for wanted in (f"{stem.lower()}.{name}", name) if stem else (name,):
        found = [member for member in members if member.ending.lower() == wanted]
        if len(found) > 1:
            raise Rejected("malformed-record", f"has two members called .{wanted}")
        if found:
            return found[0]
    return None


class _Finding(NamedTuple):
    """What a tar shows: the reason's name, unless the sample's own reason says it; and words, which may be none."""

    reason: str = ""
    words: str = ""


def _look_through(
    file: SourceFile, stream: io.BufferedReader, members: Sequence[Member], wanted: Sequence[str]
) -> _Finding:
    """Look through a tar for what the `members` of one key lack: one of the `wanted` kinds.

    Only that key is looked for, so that memory does not grow with the tar.
    """
    first, own = members[0], {member.offset for member in members}
    opposite = _TEXT_KINDS if wanted is IMAGE_ENDINGS else IMAGE_ENDINGS
    found = False
    namesakes: dict[str, Member] = {}
    whole: set[str] = set()
    with suppress(Damaged):
        for member in tar_members(file, stream):
            is_wanted = member.kind in wanted
            if not member.key or member.offset in own or not (is_wanted or member.kind in opposite):
                continue
            found |= is_wanted
            if is_wanted and member.key == first.key:
                return _apart(first, member)
            if _file_name(member) == _file_name(first) and len(namesakes) + len(whole) < _MOST_NAMESAKES:
                namesakes.setdefault(member.key, member) if is_wanted else whole.add(member.key)
    elsewhere = next((member for key, member in namesakes.items() if key not in whole), None)
    if elsewhere:
        return _Finding(words=f"; {first.name} and {elsewhere.name} {IN_DIFFERENT_FOLDERS}")
    return _Finding(words="" if found else "; nor is there one in all of the tar")


def _file_name(member: Member) -> str:
    return member.key.rpartition("/")[2]


def _apart(one: Member, other: Member) -> _Finding:
    return _Finding(
        "not-adjacent",
        f"is a key whose members are not adjacent (such as {one.name} at byte {one.offset:,} and {other.name} at byte "
        f"{other.offset:,}): unpack the tar and sort it, tar --sort=name -cf NEW.tar FOLDER",
    )
