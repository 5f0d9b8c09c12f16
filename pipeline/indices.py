"""FAISS indices over a teacher's features, one a split, with the recall measured when they were built."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores import Features, Index, Shard
from stores.atomic import write_json
from stores.digests import file_digest, value_digest
from stores.layout import Layout
from stores.manifest import Modality

INDEX_FORMAT: Final = 1
_RECALL_QUERIES: Final = 200
_RECALL_AT: Final = 10


def ensure_index(
    features: Features, split: str, shards: tuple[Shard, ...], parts: dict[str, str], layout: Layout, settings, progress
) -> tuple[str, bool]:
    """Build the exact index of one split unless a whole one is there; return its checksum and whether it was built."""
    path, card_path = layout.index(features.slug, split), layout.index_card(features.slug, split)
    origin = value_digest([INDEX_FORMAT, [parts[shard.name] for shard in shards]])
    if (digest := _whole(layout, features.slug, split, origin)) is not None:
        return digest, None
    card_path.unlink(missing_ok=True)
    rows = _rows(shards, features.modality)
    vectors = features.gather(rows)
    index = Index.exact(vectors, rows)
    index.write(path)
    digest = file_digest(path)
    card = {
        "format": INDEX_FORMAT,
        "features": origin,
        "sha256": digest,
        "kind": "exact",
        "metric": "inner product of L2-normalised features",
        "rows": len(rows),
        "dim": features.dim,
        f"recall_at_{_RECALL_AT}": measured_recall(index, vectors, rows),
    }
    write_json(card_path, card)
    return digest, "damaged"


def measured_recall(index: Index, vectors: NDArray[np.float16], rows: NDArray[np.int64]) -> float:
    """Return the recall@10 of `index` against brute force, over evenly spaced queries among its own vectors.

    A row as similar as the tenth counts as found: equal vectors (repeated captions) have no one order.
    """
    k = min(_RECALL_AT, len(rows))
    exact = vectors.astype(np.float32)
    picked = np.linspace(0, len(rows) - 1, min(_RECALL_QUERIES, len(rows))).astype(int)
    similarity = exact[picked] @ exact.T
    tenth = np.partition(similarity, -k, axis=1)[:, -k]
    _, found = index.search(exact[picked], k)
    reached = np.take_along_axis(similarity, found - rows[0], axis=1) >= tenth[:, None] - 1e-5
    return float(reached.mean())


def _rows(shards: tuple[Shard, ...], modality: Modality) -> NDArray[np.int64]:
    return np.concatenate([shard.first_row(modality) + np.arange(shard.rows(modality)) for shard in shards])


def _whole(layout: Layout, slug: str, split: str, origin: str) -> str | None:
    """Return the checksum of an index that is in place and made from these features, else None."""
    try:
        card: dict[str, Any] = json.loads(layout.index_card(slug, split).read_bytes())
        digest = file_digest(layout.index(slug, split))
    except (OSError, ValueError):
        return None
    return digest if card.get("features") == origin and card.get("sha256") == digest else None


def check_index_kind(settings, dim):
    pass
