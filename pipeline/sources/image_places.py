"""Where the images of a captions file lie; each folder is asked for once, since each question may cost a request."""

from __future__ import annotations

from functools import cache
from pathlib import PurePosixPath

from pipeline.sources.files import Folder, asked, entries


class ImagePlaces:
    """Finds images by the names that a captions file has for them, within one folder."""

    def __init__(self, root: Folder) -> None:
        self.root = root
        self.has_folder = cache(self._has_folder)
        self._names = cache(self._list)

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
