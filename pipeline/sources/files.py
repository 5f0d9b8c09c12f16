"""Files and folders on any file system that fsspec reads: found, opened at a place, and seen to stay the same.

Every read names its place in the file (`cat_file` with a start and an end), because some file systems hand the same
open file to all who open it. Whatever a driver raises becomes an `OSError` here, so that callers know one kind.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

from fsspec import AbstractFileSystem
from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from pipeline.sources.file_names import is_system_file, stem_and_ending
from pipeline.sources.unreadable import readable, reason
from stores.errors import SourceError

BLOCK: Final = 1 << 20
"""Bytes asked for at a time when a file is read from end to end."""
_SMALL: Final = 64 << 20
_DEEPEST: Final = 64
# What file systems tell versions of a file apart by, the best first: a checksum, else the time of change.
_VERSIONS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5", "blob_id"),
    *("mtime", "LastModified", "last_modified", "updated", "modified", "created"),
)
T = TypeVar("T")


@dataclass(frozen=True)
class Folder:
    """A folder on any file system that fsspec reads."""

    system: AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def file(self, name: str) -> SourceFile:
        """Return the file `name` in the folder; raises `OSError`."""
        path = self.path(name)
        return source_file(self.system, path, name, asked(self.system.info, path))

    def contents(self, names: Iterable[str], end: int) -> list[bytes | Exception]:
        """Return what is in some files up to the byte `end`, or why it cannot be had; elsewhere they come together."""
        paths = [self.path(name) for name in names]
        if self.is_local:
            return [content_or_fault(self.system, path, end) for path in paths]
        read = self.system.cat_ranges
        return asked(read, paths, [0] * len(paths), [end] * len(paths), on_error="return") if paths else []

    @cached_property
    def is_local(self) -> bool:
        return isinstance(self.system, LocalFileSystem)

    def __str__(self) -> str:
        return shown(self.system, self.root)


@dataclass(frozen=True)
class SourceFile:
    """A file of a data set, as it was when it was found; `label` tells it apart from the files found with it."""

    system: AbstractFileSystem
    path: str
    label: str
    size: int
    version: str
    """Its size and a checksum or time of change."""

    @property
    def folder(self) -> Folder:
        return Folder(self.system, self.path.rpartition("/")[0] or "/")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return shown(self.system, self.path)

    def open(self, block: int = BLOCK) -> io.BufferedReader:
        """Open the file as it lies, reading `block` bytes at a time."""
        return io.BufferedReader(_Ranges(self), buffer_size=block)

    def open_plain(self, block: int = BLOCK) -> Any:
        """Open the file as a stream of bytes, decompressed where its name ends in .gz, .bz2, .xz or .zst."""
        kind = infer_compression(self.path)
        return compr[kind](self.open(block), mode="rb") if kind else self.open(block)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`, fewer at the file's end; raises `OSError`."""
        data: bytes = asked(self.system.cat_file, self.path, start=start, end=end)
        if len(data) > end - start:
            raise OSError("its server sends the whole file when asked for a part; download it first")
        return data

    def current_version(self) -> str:
        """Ask for the file's version as it is now; raises `OSError`."""
        self.system.invalidate_cache(self.path)
        return version(asked(self.system.info, self.path))

    def check_unchanged(self) -> None:
        """Raise a `SourceError` if the file is no longer what was found at first."""
        try:
            now = self.current_version()
        except OSError as error:
            now = reason(error)
        if now != self.version:
            problem, expected = "changed while it was read", f"the size and version {self.version}"
            advice = "What was read is a mixture: put it back or let it rest, and run again."
            raise SourceError(problem, path=str(self), found=now, expected=expected, advice=advice)

    def digest(self, whole: bool = True) -> str:
        """Return the SHA-256 of a file of up to 64 MiB, or of any size with `whole`; else the file's version."""
        if not whole and self.size > _SMALL:
            return self.version
        with readable(self), self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class _Ranges(io.RawIOBase):
    """A file read by ranges, with a place of its own."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._file.size)
        data = self._file.read(self._at, end) if end > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def locate(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system and path of a path or address.

    Raises:
        SourceError: the protocol is unknown or its driver is not installed.
    """
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise SourceError(
            f"{url}: the driver for this kind of address is not installed ({error}). Install it with pip "
            f"(s3fs for s3://, gcsfs for gs://, adlfs for az://), or give a local path."
        ) from None
    except (ValueError, OSError) as error:
        raise SourceError(
            f"{url} cannot be reached ({error}). Expected a local path, or an address that fsspec reads, "
            f"such as s3://bucket/folder, gs://, az://, hf://, https:// or memory://."
        ) from None
    return system, str(path)


def version(info: dict[str, Any]) -> str:
    """Tell a file's version from what its file system says of it, as `size:mark`."""
    mark = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    return f"{info.get('size')}:{mark.timestamp() if hasattr(mark, 'timestamp') else mark}"


def shown(system: AbstractFileSystem, path: str) -> str:
    """Return a path as it is shown in messages: as an address where it is not local."""
    return path if isinstance(system, LocalFileSystem) else str(system.unstrip_protocol(path))


def source_file(system: AbstractFileSystem, path: str, label: str, info: dict[str, Any]) -> SourceFile:
    """Return the file that `info` speaks of.

    Raises:
        SourceError: it is a pipe or a device, or its size is not told, so that its end could not be told from a broken
            connection.
    """
    if info.get("type") == "other":  # a link in a listing, too
        with readable(shown(system, path)):
            local_size(system, path)
    if info.get("size") is None:
        raise SourceError(f"{shown(system, path)} has no known size: its server does not tell. Download it first.")
    return SourceFile(system, path, label, int(info["size"]), version(info))


def folder_at(url: str, setting: str) -> Folder:
    """Return the folder at a path or address.

    Raises:
        SourceError: there is none; `setting` is the parameter that names it.
    """
    system, path = locate(url)
    # A web server has no folders to ask for.
    if not url.startswith(("http://", "https://")) and not asked(system.isdir, path):
        raise SourceError(f"The image folder {url} does not exist. Set {setting} to the folder of the images.")
    return Folder(system, path)


def entries(folder: Folder) -> tuple[list[str], list[tuple[str, str | None]]]:
    """List a folder: the names of its sub-folders, and of its files with their versions where the listing tells them.

    Both are sorted, files by stem and then suffix; system files are passed over. Raises `OSError`.
    """
    folders: list[str] = []
    files: list[tuple[str, str | None]] = []
    if folder.is_local:
        # Names alone: a folder may hold a million files, and the size of each would cost a call and a kilobyte.
        with os.scandir(folder.root) as found:
            for entry in found:
                folders.append(entry.name) if entry.is_dir() else files.append((entry.name, None))
    else:
        for info in asked(folder.system.ls, folder.root, detail=True):
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            folders.append(name) if info["type"] == "directory" else files.append((name, version(info)))
    visible = [file for file in files if file[0] and not is_system_file(file[0])]
    visible.sort(key=lambda file: stem_and_ending(file[0]))
    return sorted(name for name in folders if name and not is_system_file(name)), visible


def walk(folder: Folder, below: str = "", depth: int = 0) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Yield each folder's path below `folder` ("" or ending in "/") with its files, one folder at a time, sorted.

    Raises:
        OSError: a folder cannot be listed.
        SourceError: the folders are nested too deeply to be meant.
    """
    if depth > _DEEPEST:
        raise SourceError(f"{folder} has folders nested more than {_DEEPEST} deep: does a link lead back up?")
    folders, files = entries(Folder(folder.system, folder.path(below)))
    yield below, files
    del files
    for name in folders:
        yield from walk(folder, f"{below}{name}/", depth + 1)


def local_size(system: AbstractFileSystem, path: str) -> int | None:
    """Return the size of a file of this machine, None elsewhere.

    Raises:
        OSError: there is none, or it is a pipe or a device, which would be waited for, or read, for ever.
    """
    if not isinstance(system, LocalFileSystem):
        return None
    found = asked(os.stat, path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{path} is a pipe, a device or a socket, expected a file")
    return found.st_size


def content(system: AbstractFileSystem, path: str, end: int | None = None) -> bytes:
    """Return what is in a file, up to its byte `end`; raises `OSError`, as for a whole one of more than 64 MiB."""
    size = local_size(system, path)
    if end is None and size is not None and size > _SMALL:
        raise OSError(f"{path} has {size:,} bytes, at most {_SMALL:,} are read")
    data: bytes = asked(system.cat_file, path, end=end)
    return data


def content_or_fault(system: AbstractFileSystem, path: str, end: int) -> bytes | Exception:
    """Return the same, or what it would raise."""
    try:
        return content(system, path, end)
    except OSError as error:
        return error


def asked(call: Callable[..., T], *values: Any, **settings: Any) -> T:
    """Call a file system's driver; what it raises becomes an `OSError`."""
    try:
        return call(*values, **settings)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def in_usual_order(splits: Iterable[str]) -> list[str]:
    """Sort the names of splits: train, val, test, then the others."""
    usual = ("train", "val", "test")
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))
