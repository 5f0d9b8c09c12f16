"""cusa-store missing: the false negatives of a split, which its data set calls unmatched though they belong together.

What makes a pair suspect, and how it is found, is told in `stores.missing`; here it becomes a list as Parquet, a page
of pictures that needs nothing else, and a summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from pipeline.inspection.teachers import default_slug
from stores import Store, StoreError
from stores.atomic import atomic_path
from stores.candidates import Evidence
from stores.columns import Column
from stores.console import Listing, cell
from stores.missing import LISTED, missing_matches
from stores.ownership import Kinds, is_signed, leftovers, ours_below
from stores.pages import write_html
from stores.thumbnails import thumbnail

LIST_NAME: Final = "missing.parquet"
PAGE_NAME: Final = "missing.html"
THUMBNAIL: Final = 320
"""Longest side of a picture on the page, in pixels."""
_CAPTIONS_SHOWN: Final = 5

SCHEMA: Final = LISTED.append(pa.field("relevant", pa.bool_()))
"""Of the list; `relevant` is what the store's truth says of a pair, null where it says nothing."""


def missing(path: Path, *, split: str, count: int, width: int, shown: int, out: Path | None) -> Table:
    """Write the list of the best `count` pairs and a page of those `shown`, and return a summary.

    `width` neighbours of each row are candidates; `out` is the folder for both (`claim_folder`).

    Raises:
        StoreError: there is no such store or split, or the folder is another's.
    """
    store = Store.open(path)
    folder = claim_folder(store, "missing", split, out, KINDS, "an earlier list of missing matches")
    evidence = Evidence(store, default_slug(store, "image"), default_slug(store, "text"))
    listed = missing_matches(store, evidence, split, count=count, width=width)
    truth = read_truth(store, split, listed)
    write_list(folder, listed, truth)
    pairs_shown = write_page(folder, store, split, listed, shown)
    return _summary(folder, split, evidence, listed, truth, pairs_shown)


def claim_folder(store: Store, command: str, split: str, out: Path | None, kinds: Kinds, expected: str) -> Path:
    """Return the folder for what `command` lists of a split: `out`, or <store>-<command>-<split> beside the store.

    Raises:
        StoreError: there is no such split, or it has fewer than two samples; or the folder lies in the store, or holds
            what is not of these `kinds`, `expected` in words.
    """
    samples, place = store.rows(split, "sample"), store.root.resolve()
    folder = out or place.with_name(f"{place.name}-{command}-{split}")
    if folder.resolve().is_relative_to(place):
        raise StoreError(f"lies in the store {store.root}", where="--out", path=folder, advice="Choose another --out.")
    if others := _others(folder, kinds):
        raise StoreError(path=folder, found=others, expected=expected, advice="Choose another --out.")
    if len(samples) < 2:
        path, advice = store.root, "Name another --split."
        raise StoreError("samples", path=path, where=split, found=len(samples), expected="two or more", advice=advice)
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
    re.escape(LIST_NAME): holds_columns(SCHEMA.names),
    re.escape(PAGE_NAME): is_signed,
}
"""The files of a list of missing matches."""


@dataclass(frozen=True)
class ListedRelevance:
    """What the source knows of the listed pairs."""

    relevant: NDArray[np.bool_]
    """(n,) whether each listed caption is true of the image listed with it."""
    base_rate: float
    """The share of relevant ones among all captions and images of the split that the data set does not pair."""

    def precision(self, listed: pa.Table) -> dict[str, str]:
        """Return the measured precision of the list, by name."""
        other = self.relevant[~listed["identical_caption"].to_numpy()]
        measured = {f"precision of the first {n:,}": self.relevant[:n] for n in (100, 1000) if n < len(self.relevant)}
        measured |= {f"precision of all {len(self.relevant):,}": self.relevant}
        measured |= {f"precision of the {len(other):,} without a caption in common": other}
        shown = {name: f"{hits.mean():.1%}" for name, hits in measured.items() if len(hits)}
        return shown | {"precision of random pairs": f"{self.base_rate:.1%}"}


def read_truth(store: Store, split: str, listed: pa.Table) -> ListedRelevance | None:
    """Return what the store's relevance says of the `listed` pairs; None where it does not cover the split."""
    relevance = store.relevance
    if relevance is None:
        return None
    captions, samples = store.rows(split, "caption"), store.rows(split, "sample")
    total = len(store.samples)
    wanted = listed["caption_row"].to_numpy() * total + listed["image_row"].to_numpy()
    owners = Column(store.captions["sample"])
    relevant = np.zeros(len(wanted), bool)
    known = unpaired = 0
    for batch in relevance.to_batches():
        caption, sample = batch["caption"].to_numpy(), batch["sample"].to_numpy()
        inside = (caption >= captions[0]) & (caption <= captions[-1])
        caption, sample = caption[inside], sample[inside]
        relevant |= np.isin(wanted, caption * total + sample)
        known += len(caption)
        unpaired += int((owners.numbers(caption) != sample).sum())
    if not known:
        return None
    return ListedRelevance(relevant, unpaired / max(len(captions) * (len(samples) - 1), 1))


def write_list(folder: Path, listed: pa.Table, truth: ListedRelevance | None) -> None:
    """Write the pairs, and what the truth says of each, as Parquet."""
    relevant = pa.nulls(len(listed), pa.bool_()) if truth is None else pa.array(truth.relevant)
    with atomic_path(folder / LIST_NAME) as temporary:
        pq.write_table(listed.append_column(SCHEMA.field("relevant"), relevant), temporary)


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


def _summary(
    folder: Path, split: str, evidence: Evidence, listed: pa.Table, truth: ListedRelevance | None, shown: int
) -> Table:
    table = Listing(title=f"missing matches of {split}", show_header=False, title_justify="left")
    table.add_row("teachers", f"{evidence.image_slug} for images, {evidence.text_slug} for texts")
    table.add_row("pairs", f"{len(listed):,}, the best of each two samples; {folder / 'missing.parquet'}")
    table.add_row("page", f"the first {shown:,}; {folder / 'missing.html'}")
    for name, what in (("identical_caption", "the same caption"), ("identical_image", "the same image")):
        table.add_row(f"of them with {what}", f"{int(np.sum(listed[name].to_numpy())):,}")
    if truth is not None:
        for what, value in truth.precision(listed).items():
            table.add_row(what, cell(value))
    return table
