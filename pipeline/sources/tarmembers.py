"""The members of a tar, read from their headers alone.

The tarfile module ends in silence where a tar is cut short or damaged, and keeps every member; this does neither.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Final, NamedTuple

from pipeline.sources.file_names import is_system_file
from pipeline.sources.files import SourceFile
from stores.errors import SourceError

_KEY: Final = re.compile(r"((?:.*/)?[^./]+)[.]([^/]*)", re.DOTALL)
"""WebDataset's rule: the key ends at the first dot of the name's last part."""
_LARGEST_NAME: Final = 1 << 20
_PAX_LENGTH: Final = re.compile(rb"(\d{1,7}) ")
"""How a record of POSIX's extended header begins: its length in bytes, itself among them."""
_WITHOUT_DATA: Final = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_EXTENSIONS: Final = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
)
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_LINKS: Final = {
    tarfile.LNKTYPE: "a hard link to {0}, without bytes of its own: pack the tar with --hard-dereference",
    tarfile.SYMTYPE: "a symbolic link to {0}, without bytes of its own: pack the tar with -h (--dereference)",
}
_SPARSE: Final = "stored sparse, in pieces: pack the tar without -S (--sparse)"
# Where GNU's header of a sparse member, and each block that goes on with it, says that another block follows.
_SPARSE_MARK, _SPARSE_MARK_WITHIN = 482, 504


class Member(NamedTuple):
    """A file within a tar: its sample's key and the rest of its name, and its place.

    What cannot belong to a sample (a system file, a name without an ending) has no key: its whole name is its ending.
    """

    key: str
    ending: str
    offset: int
    size: int
    flaw: str = ""
    """Why its bytes do not lie at its place: it is a link, or sparse; with the way out."""

    @property
    def name(self) -> str:
        return f"{self.key}.{self.ending}" if self.key else self.ending

    @property
    def kind(self) -> str:
        """What is after the name's last dot, in lower case."""
        return self.ending.rpartition(".")[2].lower()

    @property
    def stem(self) -> str:
        """What is between the key and the last dot; nothing for `key.jpg`."""
        return self.ending.rpartition(".")[0]


class Damaged(Exception):
    """A tar ends or breaks too early."""


def tar_members(file: SourceFile, stream: io.BufferedReader) -> Iterator[Member]:
    """Yield the members that are files or links. Between two of them, the stream may be read elsewhere.

    Raises:
        Damaged: the tar ends without its end mark, or there is no header where one should be.
        SourceError: it does not begin as a tar.
    """
    offset, extended = 0, dict[str, str]()
    while True:
        header = _header(file, stream, offset)
        if header is None:
            return
        start = _data_start(stream, offset, header)
        extends = header.type in _EXTENSIONS
        told = header.size if extends else extended.get("size", header.size)
        size = 0 if header.type in _WITHOUT_DATA else _whole_number(told)
        if size < 0 or start + size > file.size:
            raise Damaged(
                f"{header.name[:200]!r} at byte {start:,} should have {size:,} bytes, "
                f"but the file ends at {file.size:,}: it is cut short"
            )
        offset = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if extends:
            extended |= _extension(header.type, stream, start, size)
            continue
        if header.type in _FILES or header.type in _LINKS:
            yield _member(header, extended, start, size)
        extended.clear()


def _member(header: tarfile.TarInfo, extended: dict[str, str], start: int, size: int) -> Member:
    path = extended.get("GNU.sparse.name") or extended.get("path", header.name)
    flaw = _LINKS.get(header.type, "").format(repr(header.linkname[:200]))
    if header.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in extended):
        flaw = _SPARSE
    match = None if is_system_file(path) else _KEY.fullmatch(path)
    key, ending = (match[1], match[2]) if match else ("", path)
    return Member(key, ending, start, size, flaw)


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
            raise Damaged(f"it ends at byte {file.size:,} without the mark of a tar's end: it is cut short") from None
        if offset == 0:
            raise SourceError(f"{file} is no tar: it begins with {block[:20]!r}.") from None
        raise Damaged(f"no member begins at byte {offset:,} ({error}): what follows is lost") from None


def _data_start(stream: io.BufferedReader, offset: int, header: tarfile.TarInfo) -> int:
    """Return where a member's data begins: behind its header, which goes on in further blocks where it is sparse."""
    start = offset + tarfile.BLOCKSIZE
    mark = offset + _SPARSE_MARK
    while header.type == tarfile.GNUTYPE_SPARSE:
        stream.seek(mark)
        if stream.read(1) in (b"", b"\0"):
            break
        mark, start = start + _SPARSE_MARK_WITHIN, start + tarfile.BLOCKSIZE
    return start


def _extension(kind: bytes, stream: io.BufferedReader, start: int, size: int) -> dict[str, str]:
    """Return what a header of GNU's or POSIX's extension says of the next member: path, size, pieces."""
    if kind in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
        return {}
    if size > _LARGEST_NAME:
        raise Damaged(f"a name of {size:,} bytes at byte {start:,}")
    stream.seek(start)
    data = stream.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    place = 0
    while length := _PAX_LENGTH.match(data, place):
        # Within the record's own bytes: looking further would cost a header of many records the square of its size.
        end = place + int(length[1])
        name, mark, told = data[length.end() : max(end - 1, 0)].partition(b"=")
        if not mark:  # nor does it end behind its beginning, then
            break
        if name in (b"path", b"size") or name.startswith(b"GNU.sparse."):
            found[name.decode("utf-8", "replace")] = told.decode("utf-8", "surrogateescape")
        place = end
    return found


def _whole_number(value: str | int) -> int:
    return int(value) if isinstance(value, int) or re.fullmatch(r"[0-9]{1,18}", value) else -1
