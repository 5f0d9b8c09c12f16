"""Encoded images where they lie: a file in a folder, or a run of bytes within a larger file; and how they are found."""

from __future__ import annotations

import posixpath
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import PurePosixPath
from typing import Final

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.file_names import IMAGE_ENDINGS
from pipeline.sources.files import Folder, SourceFile, asked, entries, local_size, version
from pipeline.sources.records import EncodedImage, Rejected

MAX_BYTES: Final = 3 << 27
"""Of an image file: what the largest picture that `data.max_pixels` may allow has before it is compressed."""
_MOST_FOLDERS: Final = 16


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
        path = self._path()
        try:
            _check_size(path, local_size(self.folder.system, path) or _listed_size(self.listed))
            data: bytes = asked(self.folder.system.cat_file, path)
        except FileNotFoundError:
            raise Rejected("missing-file", f"{path} does not exist{_advice(self.folder, self.name)}") from None
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
class StoredImage(EncodedImage):
    """An image within a file: `size` bytes from `offset`. It is read by its range alone."""

    file: SourceFile
    offset: int
    size: int

    def identity(self) -> str:
        return f"{self.file.label}:{self.file.version}:{self.offset}+{self.size}"

    def read(self) -> bytes:
        check_version(self.file)
        _check_size(self.file, self.size)
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


def _listed_size(listed: str | None) -> int:
    """Return the size in a version; 0 where it is not told."""
    size = (listed or "").partition(":")[0]
    return int(size) if size.isdecimal() else 0


def _check_size(place: object, size: int) -> None:
    """Raise `Rejected` for what is too large to be an image, before it is read."""
    if size > MAX_BYTES:
        raise Rejected("too-many-bytes", f"{place}: an image of {size:,} bytes, at most {MAX_BYTES:,} are taken")


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


class ImagePlaces:
    """Finds images by the names that a captions file has for them, within one folder."""

    def __init__(self, root: Folder) -> None:
        self.root = root
        self.has_folder = cache(self._has_folder)
        self._names = cache(self._list)

    def within(self, folder: object, name: str) -> str:
        """Return where an image lies that the data set names together with its folder.

        People point at the folder above the named one, or at the images themselves.
        """
        return f"{folder}/{name}" if isinstance(folder, str) and folder and self.has_folder(folder) else name

    def locate(self, name: str) -> str:
        """Return where a COCO image lies: there, or in the folder that its name (COCO_val2014_…) speaks of."""
        folder, _, last = name.rpartition("/")
        if not _is_inside(name) or last in self._names(folder):
            return name
        folders = (part for part in name.split("_") if self.has_folder(part) and name in self._names(part))
        found = next(folders, None)
        return f"{found}/{name}" if found else name

    def _has_folder(self, name: str) -> bool:
        try:
            return bool(_is_inside(name) and asked(self.root.system.isdir, self.root.path(name)))
        except OSError:
            return False

    def _list(self, name: str) -> frozenset[str]:
        try:
            return frozenset(file for file, _ in entries(Folder(self.root.system, self.root.path(name)))[1])
        except OSError:
            return frozenset()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _advice(folder: Folder, name: str) -> str:
    """Return what to change so that `name` is found in `folder`, after a semicolon; nothing where nothing is near.

    Only a local folder is looked through: elsewhere each look would be a request.
    """
    if not folder.is_local:
        return ""
    slashed = name.replace("\\", "/")
    if slashed != name and _is_there(folder, slashed):
        return r"; it is there with / in place of \: write the names so"
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, slashed)
        if other != slashed and _is_there(folder, other):
            return f"; a file of the same letters is there, in Unicode's form {form}: write the names so, or the files"
    *above, last = slashed.split("/")
    if above and _is_there(folder, last):
        if f"/{folder.root}".endswith(f"/{'/'.join(above)}"):
            return f"; {last} is in the folder itself: set data.images (--images) to the folder above"
        return f"; {last} is there, without {'/'.join(above)}/: leave that out of the names"
    if slashed.strip() != slashed and _is_there(folder, slashed.strip()):
        return "; it is there without the blanks around its name: write it so"
    for ending in IMAGE_ENDINGS:
        if _is_there(folder, f"{slashed}.{ending}"):
            return f"; {last}.{ending} is there: write the names with their ending"
    for inner in _folders(folder):
        if _is_there(folder, f"{inner}/{slashed}"):
            return f"; it is in {inner}/: set data.images (--images) to {folder.path(inner)}"
    near = _same_but_case(folder, "/".join(above)).get(last.lower())
    return f"; {near} is there: upper and lower case differ" if near else ""


def _is_there(folder: Folder, name: str) -> bool:
    try:
        return bool(asked(folder.system.isfile, folder.path(name)))
    except OSError:
        return False


@lru_cache(maxsize=16)
def _folders(folder: Folder) -> tuple[str, ...]:
    try:
        return tuple(entries(folder)[0][:_MOST_FOLDERS])
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _same_but_case(folder: Folder, below: str) -> dict[str, str]:
    try:
        return {name.lower(): name for name, _ in entries(Folder(folder.system, folder.path(below)))[1]}
    except OSError:
        return {}
