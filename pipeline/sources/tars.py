"""WebDataset tars, as img2dataset writes them: an image and its caption as .txt or .json, under one key.

Headers and captions are read, images are not: a record keeps the place of its image in the tar. A tar that is cut
short or damaged gives what is whole, and then a bad record that names the place. (The tarfile module ends in silence
there; and it keeps every member.)
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.base import BadRecord, Record, Rejected
from pipeline.sources.files import BLOCK, SourceFile
from pipeline.sources.images import StoredImage
from stores.errors import SourceError

IMAGE_ENDINGS: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_KEY: Final = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""WebDataset's rule: the key ends at the first dot of the name's last part."""
_LARGEST_TEXT: Final = 16 << 20
_LARGEST_NAME: Final = 1 << 20
_WITHOUT_DATA: Final = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
# Locally a seek is free. Over a network a request costs as much time as a megabyte: smaller images are read over.
_LOCAL_BLOCK: Final = 16 << 10


class Member(NamedTuple):
    """A file within a tar: its sample's key and the rest of its name, and its place."""

    key: str
    ending: str
    offset: int
    size: int

    @property
    def kind(self) -> str:
        """What is after the name's last dot, in lower case."""
        return self.ending.rpartition(".")[2].lower()


class _Damaged(Exception):
    """A tar ends or breaks too early."""


class _Malformed(Exception):
    """A sample is not one image with its caption."""


def tar_records(file: SourceFile, prefix: str) -> Iterator[Record | BadRecord]:
    """Yield the samples of a tar, in its order.

    Args:
        file: the tar.
        prefix: the tar's name and a slash, which goes before its keys unless they begin with it, as img2dataset's do.

    Raises:
        SourceError: the file is no tar at all.
        OSError: it cannot be read.
    """
    reader = _SampleReader(file, prefix)
    held: list[Member] = []
    with file.open(_LOCAL_BLOCK if isinstance(file.system, LocalFileSystem) else BLOCK) as stream:
        try:
            for member in tar_members(file, stream):
                if held and held[0].key != member.key:
                    yield reader.record(held, stream)
                    held = []
                held.append(member)
        except _Damaged as damage:
            kinds = {member.kind for member in held}
            if kinds & set(IMAGE_ENDINGS) and kinds & {"txt", "json"}:
                yield reader.record(held, stream)
            yield BadRecord(source_id=file.label, rejected=Rejected("truncated-file", f"{file}: {damage}"))
        else:
            if held:
                yield reader.record(held, stream)


class _SampleReader:
    """Makes records of a tar's members."""

    def __init__(self, file: SourceFile, prefix: str) -> None:
        self._file, self._prefix, self._stem = file, prefix, prefix.removesuffix("/")

    def record(self, members: Sequence[Member], stream: io.BufferedReader) -> Record | BadRecord:
        """Return the record of the members under one key."""
        key = members[0].key
        try:
            if len({member.ending.lower() for member in members}) != len(members):
                raise _Malformed("has two members of one name (is there a dot in its key? it ends at the first)")
            image = _only(members, IMAGE_ENDINGS)
            if image is None:
                raise _Malformed(f"has no image among .{', .'.join(member.ending for member in members)}")
            facts = _facts(_text(_only(members, ("json",)), stream))
            if isinstance(facts.get("key"), str):
                key = facts["key"]
            text = _text(_only(members, ("txt",)), stream)
            captions = _captions(facts.get("caption") if text is None else text)
        except _Malformed as error:
            rejected = Rejected("malformed-record", f"{self._file}, at byte {members[0].offset}: {key} {error}")
            return BadRecord(source_id=self._unique(key), rejected=rejected)
        stored = StoredImage(self._file, image.offset, image.size)
        return Record(source_id=self._unique(key), captions=captions, image=stored)

    def _unique(self, key: str) -> str:
        return key if key.startswith(self._stem) else self._prefix + key


def _only(members: Sequence[Member], kinds: Sequence[str]) -> Member | None:
    """Return the member of one of these kinds; of several, the one that is called just so."""
    found = [member for member in members if member.kind in kinds]
    plain = [member for member in found if member.ending.lower() in kinds]
    if len(found) > 1 and len(plain) != 1:
        names = ", ".join(f".{member.ending}" for member in found)
        raise _Malformed(f"has {names}, expected one (is there a dot in its key? it ends at the first)")
    return next(iter(plain or found), None)


def _text(member: Member | None, stream: io.BufferedReader) -> str | None:
    if member is None:
        return None
    if member.size > _LARGEST_TEXT:
        raise _Malformed(f"has a .{member.ending} of {member.size:,} bytes")
    stream.seek(member.offset)
    return stream.read(member.size).decode("utf-8-sig", "surrogateescape")


def _facts(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"has a .json that is none ({error})") from None
    if not isinstance(value, dict):
        raise _Malformed(f"has a .json that holds a {type(value).__name__}, expected an object")
    return value


def _captions(value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise _Malformed("has a caption in its .json that is not text")
    return tuple(texts)


def tar_members(file: SourceFile, stream: io.BufferedReader) -> Iterator[Member]:
    """Yield the members that are files and have a key, by their headers alone.

    Raises:
        _Damaged: the tar ends without its end mark, or there is no header where one should be.
        SourceError: it does not begin as a tar.
    """
    offset, renamed = 0, dict[str, str]()
    while True:
        header = _header(file, stream, offset)
        if header is None:
            return
        start = offset + tarfile.BLOCKSIZE
        size = 0 if header.type in _WITHOUT_DATA else _whole_number(renamed.pop("size", header.size))
        if size < 0 or start + size > file.size:
            raise _Damaged(
                f"{header.name[:200]!r} at byte {start:,} should have {size:,} bytes, "
                f"but the file ends at {file.size:,}: it is cut short"
            )
        offset = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            renamed |= _long_name(header.type, stream, start, size)
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            match = _KEY.fullmatch(renamed.pop("path", header.name))
            renamed.clear()
            if match and header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield Member(match[1], match[2], start, size)


def _header(file: SourceFile, stream: io.BufferedReader, offset: int) -> tarfile.TarInfo | None:
    """Return the header at a place, or None at the mark of the tar's end."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) == tarfile.BLOCKSIZE and not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if len(block) < tarfile.BLOCKSIZE:
            raise _Damaged(f"it ends at byte {file.size:,} without the mark of a tar's end: it is cut short") from None
        if offset == 0:
            raise SourceError(f"{file} is no tar: it begins with {block[:20]!r}.") from None
        raise _Damaged(f"no member begins at byte {offset:,} ({error}): what follows is lost") from None


def _long_name(kind: bytes, stream: io.BufferedReader, start: int, size: int) -> dict[str, str]:
    """Return the path and size that a header of GNU's or POSIX's extension gives the next member."""
    if size > _LARGEST_NAME:
        raise _Damaged(f"a name of {size:,} bytes at byte {start:,}")
    stream.seek(start)
    data = stream.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while record := re.match(rb"(\d{1,7}) ([^=]+)=", data):
        end = int(record[1])
        found[record[2].decode("utf-8", "replace")] = data[record.end() : end - 1].decode("utf-8", "surrogateescape")
        data = data[max(end, 1) :]
    return {name: value for name, value in found.items() if name in ("path", "size")}


def _whole_number(value: str | int) -> int:
    return int(value) if isinstance(value, int) or re.fullmatch(r"[0-9]{1,18}", value) else -1
