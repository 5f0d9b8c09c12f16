"""Encoded images where they lie: a file in a folder, or a run of bytes within a larger file."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import PurePosixPath

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.files import Folder, SourceFile, asked, version
from pipeline.sources.nearby import advice
from pipeline.sources.records import Rejected


@dataclass(frozen=True)
class ImageFile:
    """An image in a folder, named by the data set: within the folder, or by an absolute path that lies under it."""

    folder: Folder
    name: str
    listed: str | None = None
    """Its version, where the folder's listing told it."""

    def identity(self) -> str:
        """Name the file with its size and time of change, or what its file system tells versions apart by."""
        if self.listed is not None:
            return f"{self.name}:{self.listed}"
        try:
            return f"{self.name}:{version(asked(self.folder.system.info, self._path()))}"
        except (OSError, Rejected):
            return f"{self.name}:absent"

    def place(self) -> str:
        """Return the file's path, however the data set spells it; one with `..`, never read, as it is spelt."""
        path = absolute(self.name, self.folder) or self.folder.path(self.name)
        return path if ".." in path.split("/") else posixpath.normpath(path)

    def read(self) -> bytes:
        """Return the file's bytes."""
        path = self._path()
        try:
            data: bytes = asked(self.folder.system.cat_file, path)
        except FileNotFoundError:
            raise Rejected("missing-file", f"{path} does not exist{advice(self.folder, self.name)}") from None
        except OSError as error:
            raise Rejected("unreadable-file", str(error)) from None
        if self.listed is not None and self.listed.partition(":")[0] not in (str(len(data)), "None"):
            raise Rejected("changed-file", f"{path} has {len(data)} bytes, when listed {self.listed.partition(':')[0]}")
        return data

    def _path(self) -> str:
        # By its words, not by where links lead: folders of links to other disks are the user's own.
        if ".." in PurePosixPath(self.name).parts:
            raise Rejected("path-outside", f"{self.name} leads out of {self.folder}")
        path = absolute(self.name, self.folder)
        if path is None:
            return self.folder.path(self.name)
        if not PurePosixPath(path).is_relative_to(self.folder.root):
            raise Rejected(
                "path-outside",
                f"{self.name} is absolute and not under {self.folder}: set data.images (--images) to a folder above it",
            )
        return path


@dataclass(frozen=True)
class StoredImage:
    """An image within a file: `size` bytes from `offset`. It is read by its range alone."""

    file: SourceFile
    offset: int
    size: int

    def identity(self) -> str:
        """Name the place in that version of the file."""
        return f"{self.file.label}:{self.file.version}:{self.offset}+{self.size}"

    def place(self) -> None:
        """Return nothing: equal pictures may lie in a file several times."""

    def read(self) -> bytes:
        """Return the bytes."""
        check_version(self.file)
        try:
            data = self.file.read(self.offset, self.offset + self.size)
        except OSError as error:
            raise Rejected("unreadable-file", f"{self.file}: {error}") from None
        if len(data) != self.size:
            raise Rejected("changed-file", f"{self.file} ends within the {self.size} bytes from {self.offset}")
        return data


def absolute(name: str, folder: Folder) -> str | None:
    """Return an absolute path, or an address of the folder's own kind, as a path of its file system; else None."""
    protocol, mark, _ = name.partition("://")
    if mark and protocol.isalnum():
        own = folder.system.protocol
        is_own = protocol in ((own,) if isinstance(own, str) else own)
        return str(folder.system._strip_protocol(name)) if is_own else name
    return f"/{name.lstrip('/')}" if name.startswith("/") else None


def check_version(file: SourceFile) -> None:
    """Raise `Rejected` if a local file changed since it was listed; elsewhere that would cost a request an image."""
    if not isinstance(file.system, LocalFileSystem):
        return
    try:
        changed = file.current_version() != file.version
    except OSError as error:
        raise Rejected("missing-file", f"{file}: {error}") from None
    if changed:
        raise Rejected("changed-file", f"{file} changed while it was read")
