"""The two files of cusa-store missing: the list as Parquet, and a page of pictures that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inspection.known_truth import ListedRelevance
from stores import Store, StoreError
from stores.atomic import atomic_path
from stores.columns import Column
from stores.missing import LISTED
from stores.ownership import Kinds, is_signed, leftovers, ours_below
from stores.pages import write_html
from stores.thumbnails import thumbnail

LIST_NAME: Final = "missing.parquet"
PAGE_NAME: Final = "missing.html"
THUMBNAIL: Final = 320
"""Longest side of a picture on the page, in pixels."""
_CAPTIONS_SHOWN: Final = 5

_RELEVANT: Final = pa.field("relevant", pa.bool_())
"""What the store's truth says of a pair; null where it says nothing."""


def claim_folder(store: Path, folder: Path, kinds: Kinds, expected: str) -> Path:
    """Return `folder` if results of these kinds, `expected` in words, may be written there.

    Raises:
        StoreError: it lies in the store, or holds what is not ours.
    """
    if folder.resolve().is_relative_to(store.resolve()):
        raise StoreError(f"lies in the store {store}", where="--out", path=folder, advice="Choose another --out.")
    if others := _others(folder, kinds):
        raise StoreError(path=folder, found=others, expected=expected, advice="Choose another --out.")
    return folder


def _others(folder: Path, kinds: Kinds) -> list[str]:
    """Return the names of all in the folder that this command did not write, or not so."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    paths = set(folder.iterdir())
    ours = {*ours_below(folder, kinds), *leftovers(folder, kinds)}
    return sorted(path.name for path in paths - ours)


def holds_columns(names: list[str]) -> Callable[[Path], bool]:
    """Return a test of whether a file is Parquet with these columns."""

    def test(path: Path) -> bool:
        try:
            return bool(pq.read_schema(path).names == names)
        except (OSError, pa.ArrowInvalid):
            return False

    return test


KINDS: Final[Kinds] = {
    re.escape(LIST_NAME): holds_columns([*LISTED.names, _RELEVANT.name]),
    re.escape(PAGE_NAME): is_signed,
}
"""The files of a list of missing matches."""


def write_list(folder: Path, listed: pa.Table, truth: ListedRelevance | None) -> None:
    """Write the pairs, and what the truth says of each, as Parquet."""
    relevant = pa.nulls(len(listed), pa.bool_()) if truth is None else pa.array(truth.relevant)
    with atomic_path(folder / LIST_NAME) as temporary:
        pq.write_table(listed.append_column(_RELEVANT, relevant), temporary)


def write_page(folder: Path, store: Store, split: str, listed: pa.Table, shown: int) -> int:
    """Write the page of the first `shown` pairs; return how many there are."""
    pairs = [_pair(store, row) for row in listed.slice(0, shown).to_pylist()]
    template = Path(__file__).with_name(PAGE_NAME)
    write_html(folder / PAGE_NAME, template, split=split, pairs=pairs, total=len(listed))
    return len(pairs)


def _pair(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    own = _sample(store, row["sample_row"], row["caption"])
    return {**row, "own": own, "suggested": _sample(store, row["image_row"], row["nearest_caption"])}


def _sample(store: Store, row: int, nearest: str) -> dict[str, Any]:
    """Return a sample's picture and first captions, and the `nearest` one in any case."""
    first, count = (int(store.samples[name][row].as_py()) for name in ("caption_first", "caption_count"))
    captions = Column(store.captions["text"]).values(np.arange(first, first + min(count, _CAPTIONS_SHOWN)))
    if nearest not in captions:
        captions[-1] = nearest
    return {"picture": thumbnail(store.images[row], THUMBNAIL), "captions": captions, "more": count - len(captions)}
