"""cusa-store suspects: the pairs of a split whose caption does not fit its image, by the teachers' features alone.

What makes a pair suspect is told in `pipeline.inspection.pair_fit`; here it becomes a list, a page and a clean column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table
from sklearn.metrics import roc_auc_score

from pipeline.inspection.missing_matches import THUMBNAIL, claim_folder, holds_columns
from pipeline.inspection.pair_fit import PairFit
from pipeline.inspection.teachers import default_slug
from stores import Store
from stores.atomic import atomic_path
from stores.clean import FILE_NAME, is_clean_column, write_clean
from stores.clean_mixture import clean_probabilities
from stores.columns import Column
from stores.console import Listing
from stores.ownership import Kinds, is_signed
from stores.pages import write_html
from stores.thumbnails import thumbnail

LIST_NAME: Final = "suspects.parquet"
PAGE_NAME: Final = "suspects.html"
LISTED: Final = pa.schema(
    [
        ("caption_row", pa.int64()),
        ("caption", pa.large_string()),
        ("sample_row", pa.int64()),
        ("sample_source_id", pa.string()),
        ("text_fit", pa.float32()),
        ("image_fit", pa.float32()),
        ("clean_probability", pa.float32()),
        ("wrong", pa.bool_()),
    ]
)
"""One row a pair, the least fitting first; `wrong` is null where the store does not know."""
_KINDS: Final[Kinds] = {
    re.escape(LIST_NAME): holds_columns(LISTED.names),
    re.escape(PAGE_NAME): is_signed,
    re.escape(FILE_NAME): is_clean_column,
}


def suspects(path: Path, *, split: str, count: int, width: int, shown: int, out: Path | None) -> Table:
    """Write the list of `count` pairs, a page of those `shown` and the clean column of a split; return a summary.

    `width` neighbours of each image and caption are looked at; `out` is the folder for all (`claim_folder`).

    Raises:
        StoreError: there is no such store or split, or the folder is another's.
    """
    store = Store.open(path)
    folder = claim_folder(store, "suspects", split, out, _KINDS, "an earlier list of suspects")
    judged = _judge(store, (default_slug(store, "image"), default_slug(store, "text")), split, width)
    write_clean(
        folder / FILE_NAME, store, judged.fit.captions[judged.order_of_rows], judged.clean[judged.order_of_rows]
    )
    listed = _listed(store, judged, count)
    with atomic_path(folder / LIST_NAME) as temporary:
        pq.write_table(listed, temporary)
    rows: list[dict[str, Any]] = listed.slice(0, shown).to_pylist()
    pairs = [{**row, "picture": thumbnail(store.images[row["sample_row"]], THUMBNAIL)} for row in rows]
    template = Path(__file__).with_name(PAGE_NAME)
    write_html(folder / PAGE_NAME, template, split=split, pairs=pairs, total=len(listed))
    return _summary(folder, split, judged, len(listed), len(pairs))


@dataclass(frozen=True)
class _Judged:
    """What was found of the pairs of a split."""

    slugs: tuple[str, str]
    fit: PairFit
    text: NDArray[np.float32]
    image: NDArray[np.float32]
    clean: NDArray[np.float64]
    order: NDArray[np.int64]
    """The places of the pairs that could be judged, the least fitting first."""
    wrong: NDArray[np.bool_] | None
    """Which were made wrong on purpose; None where the store has no such."""

    @property
    def order_of_rows(self) -> NDArray[np.int64]:
        return np.sort(self.order)


def _judge(store: Store, slugs: tuple[str, str], split: str, width: int) -> _Judged:
    fit = PairFit(store, slugs, split, width)
    text, image = fit.scores()
    score = (text + image).astype(np.float64)
    judged = np.flatnonzero(np.isfinite(score))
    clean = np.full(len(score), np.nan)
    if len(judged):
        clean[judged] = clean_probabilities(-score[judged], "gaussian")
    wrong = None
    if store.pairing is not None:
        wrong = np.not_equal(fit.paired, Column(store.captions["sample"]).numbers(fit.captions))
    return _Judged(slugs, fit, text, image, clean, judged[np.argsort(score[judged], kind="stable")], wrong)


def _listed(store: Store, judged: _Judged, count: int) -> pa.Table:
    order = judged.order[:count]
    rows, samples = judged.fit.captions[order], judged.fit.paired[order]
    return pa.table(
        {
            "caption_row": rows,
            "caption": Column(store.captions["text"]).values(rows),
            "sample_row": samples,
            "sample_source_id": Column(store.samples["source_id"]).values(samples),
            "text_fit": judged.text[order],
            "image_fit": judged.image[order],
            "clean_probability": judged.clean[order],
            "wrong": pa.nulls(len(order), pa.bool_()) if judged.wrong is None else judged.wrong[order],
        },
        schema=LISTED,
    )


def _summary(folder: Path, split: str, judged: _Judged, listed: int, shown: int) -> Table:
    order, held = judged.order, int((judged.clean[judged.order] <= 0.5).sum())
    table = Listing(title=f"suspects of {split}", show_header=False, title_justify="left")
    table.add_row("teachers", f"{judged.slugs[0]} for images, {judged.slugs[1]} for texts")
    table.add_row("pairs", f"the {listed:,} least fitting of {len(order):,}; {folder / LIST_NAME}")
    table.add_row("page", f"the first {shown:,}; {folder / PAGE_NAME}")
    table.add_row("held to be wrong", f"{held:,}; each pair's probability: {folder / FILE_NAME}")
    if judged.wrong is not None and 0 < (wrong := judged.wrong[order]).sum() < len(wrong):
        tenth = wrong[: max(1, len(wrong) // 10)]
        table.add_row(f"precision of the first tenth, {len(tenth):,}", f"{tenth.mean():.1%}")
        table.add_row("wrong pairs among all", f"{wrong.mean():.1%}")
        table.add_row("area under the curve", f"{roc_auc_score(wrong, -np.arange(len(wrong))):.3f}")
    return table
