"""How many of the listed pairs truly belong together, where the store's source knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores import Store
from stores.columns import Column


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
