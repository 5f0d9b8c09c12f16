"""cusa-store missing: the false negatives of a split, which its data set calls unmatched though they belong together.

What makes a pair suspect, and how it is found, is told in `stores.missing`; here it becomes files and a summary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.table import Table

from pipeline.inspection.missing_files import KINDS, ListedRelevance, claim_folder, read_truth, write_list, write_page
from pipeline.inspection.teachers import default_slug
from stores import Store
from stores.candidates import Evidence
from stores.console import Listing, cell
from stores.missing import missing_matches


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
