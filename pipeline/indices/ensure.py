"""Bringing the index of one teacher and split up to date: built only where a whole one is not there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from pipeline.indices.build import build_index, draw_sample
from pipeline.indices.cards import IndexOrigin, index_fault, write_card
from pipeline.indices.kinds import EXACT, choose_kind, training_rows
from pipeline.indices.recall import RECALL_AT, ExactNeighbours, Tuned, widen_until
from stores import Features, Shard, StoreError
from stores.digests import file_digest, value_digest
from stores.index import Index, faiss_reason
from stores.layout import Layout
from stores.parameters import Extract


def ensure_index(
    features: Features,
    split: str,
    shards: tuple[Shard, ...],
    parts: dict[str, str],
    layout: Layout,
    settings: Extract,
    progress: Progress | None = None,
) -> tuple[str, str | None]:
    """Build the index of one split unless a whole one is there; an index that cannot be built leaves the old one.

    Rows that the teacher could not encode are left out. `shards` are those of the split, `parts` the checksums of their
    feature parts.

    Returns:
        The index file's checksum, and why the index was built now; None where the one there is whole.

    Raises:
        ParameterError: faiss refuses the kind.
        StoreError: the kind cannot be built on these rows, or does not reach `min_recall`; the message says what to do.
    """
    path, card_path = layout.index(features.slug, split), layout.index_card(features.slug, split)
    rows = _valid_rows(features, shards)
    kind = choose_kind(settings, len(rows))
    least = None if kind == EXACT else settings.min_recall
    origin = IndexOrigin(features=value_digest([parts[shard.name] for shard in shards]), kind=kind, min_recall=least)
    why, digest = index_fault(path, card_path, origin)
    if why is None:
        return digest, None
    index, measured = _build(origin.kind, features, split, rows, settings, progress or Progress(disable=True))
    index.write(path)
    digest = file_digest(path)
    write_card(card_path, origin, digest, {**measured, "bytes": path.stat().st_size})
    return digest, why


def _build(
    kind: str, features: Features, split: str, rows: NDArray[np.int64], settings: Extract, progress: Progress
) -> tuple[Index, dict[str, Any]]:
    """Build, measure and widen; return the index and what its card says of it."""
    task = progress.add_task(f"index · {features.slug} · {split}", total=len(rows), note="", visible=kind != EXACT)
    show = partial(progress.update, task)
    sample = draw_sample(rows, training_rows(kind, features.dim))
    truth = ExactNeighbours(features, sample.queries, len(rows))

    def seen(vectors: NDArray[np.float32], block: NDArray[np.int64]) -> None:
        truth.see(vectors, block)
        show(advance=len(block), note="")

    show(note=f"training on {len(sample.training):,} rows")
    try:
        index, built_on = build_index(kind, features, rows, sample, settings.device, seen)
        show(note="measuring recall")
        tuned = widen_until(settings.min_recall, index, truth, features)
    except (RuntimeError, MemoryError) as error:
        raise StoreError(
            f"{_named(kind, features.slug, split)} cannot be built on {len(rows):,} rows: {faiss_reason(error)}. "
            f"Choose another kind with extract.index, or exact search with extract.exact_rows={len(rows)}."
        ) from None
    if tuned.recall < settings.min_recall:
        raise _too_poor(kind, features.slug, split, len(rows), tuned, settings)
    show(note=f"recall@{RECALL_AT} {tuned.recall:.3f}")
    return index, {
        "metric": "inner product of L2-normalised features",
        "rows": len(rows),
        "dim": features.dim,
        "training_rows": len(sample.training),
        "built_on": built_on,
        "search": tuned.search,
        f"recall_at_{RECALL_AT}": tuned.recall,
        "queries": len(sample.queries),
    }


def _too_poor(kind: str, slug: str, split: str, rows: int, tuned: Tuned, settings: Extract) -> StoreError:
    width = ", ".join(f"{name} {value:,}" for name, value in tuned.search.items())
    return StoreError(
        f"{_named(kind, slug, split)} finds {tuned.recall:.3f} of the true ten nearest rows"
        f"{f' at its widest search ({width})' if width else ''}; extract.min_recall asks for {settings.min_recall:g}. "
        f"Choose a finer kind with extract.index (auto, or one that stores more of each vector, such as "
        f"{kind.split(',')[0] if kind.startswith('IVF') else 'IVF1024'},SQfp16), a lower extract.min_recall, "
        f"or exact search with extract.exact_rows={rows}."
    )


def _named(kind: str, slug: str, split: str) -> str:
    return f"The index {kind} of {slug} over the split {split!r}"


def _valid_rows(features: Features, shards: tuple[Shard, ...]) -> NDArray[np.int64]:
    """Return the global rows of the shards that have features: what failed is all zeros and near to nothing."""
    spans = [(shard.first_row(features.level), shard.rows(features.level)) for shard in shards]
    return np.concatenate([first + np.flatnonzero(features.valid[first : first + count]) for first, count in spans])
