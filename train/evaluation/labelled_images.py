"""Images with classes, to be retrieved by one another: of a folder, or of a store's split."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores import Store
from train.evaluation.result import DataSetError

LARGEST_FILE: Final = 256 << 20
"""Bytes; a larger file is no image of these data sets, and is not read."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with classes."""

    title: str
    names: list[str]
    labels: NDArray[np.str_]
    """(n,) the class of each."""
    queries: NDArray[np.bool_] | None = None
    """(n,) which are queries against the others, the gallery; None: each is a query against all others."""
    read: Callable[[int], bytes]
    """Return the bytes of an image file by its place in `names`, in any thread; raises `OSError`."""


def folder_images(
    title: str, folder: Path, names: list[str], labels: list[str], queries: list[bool] | None = None
) -> LabelledImages:
    """Return the images at the paths `names` in `folder`; a missing one is found when it is read."""

    def read(place: int) -> bytes:
        return _read(folder / names[place])

    are_queries = None if queries is None else np.array(queries, dtype=np.bool_)
    return LabelledImages(title=title, names=names, labels=np.array(labels, np.str_), queries=are_queries, read=read)


def split_images(store: Store, split: str) -> LabelledImages:
    """Return the images of a store's split, with the labels that the store carries.

    Raises:
        DataSetError: some have no label.
    """
    rows = store.rows(split, "sample")
    samples = store.samples.slice(rows[0], len(rows))
    labels = samples["label"]
    if labels.null_count:
        raise DataSetError(
            f"{store.root}: {labels.null_count:,} of the {len(rows):,} images of the split {split!r} have no label, "
            f"so it is not measured for image retrieval. Labels come from the source (data.columns.label)."
        )
    lock = threading.Lock()

    def read(place: int) -> bytes:
        with lock:  # a store closes the tar that it mapped longest ago, which another thread may be reading
            return store.images[int(rows[place])]

    return LabelledImages(
        title=f"{store.root.name}, {split}",
        names=samples["key"].to_pylist(),
        labels=np.array([str(label) for label in labels.to_pylist()], np.str_),
        read=read,
    )


def _read(path: Path) -> bytes:
    if not path.is_file():  # a folder, or a pipe, which would never end
        raise FileNotFoundError("no such file")
    with path.open("rb") as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise OSError(f"it is larger than {LARGEST_FILE >> 20} MiB")
    return data
