"""Files that claim more than they hold, that are no files, or whose damage shows only while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_odd_tars import IMAGE
from test_sources import listed, opened

from pipeline.sources.image_files import MAX_BYTES
from stores import SourceError


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


NO_FILES = [(_pipe, "unreadable-file"), (_device, "unreadable-file"), (_sparse, "too-many-bytes")]


@pytest.mark.parametrize(("make", "reason"), NO_FILES, ids=["pipe", "device", "sparse"])
def test_what_is_no_file_or_too_large_is_never_read(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(IMAGE)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("told")
    (table := tmp_path / "t.csv").write_text("image,caption\nb.jpg,told\n")
    for name in ("b.jpg", "c.txt"):
        make(tmp_path / name)
    found = {name: image for name, _, image in listed(opened(str(tmp_path), format="folder"))}
    assert found == {"a.jpg": IMAGE, "b.jpg": reason, "c.jpg": "unreadable-file"}
    assert [image for *_, image in listed(opened(str(table)))] == [reason]


def test_a_pipe_is_no_data_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(SourceError, match="is a pipe, a device or a socket, expected a file"):
        opened(str(tmp_path / "t.csv"))
