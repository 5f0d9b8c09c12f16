"""Several students measured as one, such as SGRAF of SGR and SAF: by the mean of their scores of each pair.

Each has encoders of its own and is scored by itself, so there is no embedding of an item, and no uni-modal task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from stores.errors import CusaError
from stores.parameters import Evaluation
from train.evaluation.embed import SplitEncoded
from train.evaluation.evaluate import compare_split
from train.evaluation.on_store import StudentOnStore
from train.evaluation.similarities import ScoreMatrix, Similarities

_ROWS: Final = 256
"""Of a block; one of all members is held beside the mean."""


@dataclass(frozen=True)
class EnsembleOnStore(StudentOnStore):
    """The figures of a student and the `others` by the mean of their scores, as they are, whatever their scales."""

    others: tuple[StudentOnStore, ...] = ()

    @property
    def compared(self) -> tuple[SplitEncoded, Similarities] | None:
        """Nothing: a page's cases need embeddings, which are of one member alone."""
        return None

    @cached_property
    def _similarities(self) -> Similarities:
        # Each by its own scorer: what one ranked by as the first of two stages is another thing.
        encoded = [self._encoded, *(other._embedded(other.model.aligned, reranks=False) for other in self.others)]
        models = [self.model.aligned, *(other.model.aligned for other in self.others)]
        return mean_similarities(
            [compare_split(model, items, self.folder) for model, items in zip(models, encoded, strict=True)]
        )

    @property
    def _settings(self) -> Evaluation:
        # A second stage of one member's training is none of them all.
        return replace(super()._settings, rerank=self.rerank)


def mean_similarities(members: Sequence[Similarities]) -> Similarities:
    """Return the mean of several similarities of the same n and m items, in float32, in memory.

    Raises:
        CusaError: they are of different items.
    """
    if len({found.shape for found in members}) > 1:
        sizes = " and ".join(f"{rows} × {columns}" for rows, columns in (found.shape for found in members))
        raise CusaError(f"The members of an ensemble compare different items: {sizes}.")
    rows, columns = members[0].shape
    mean, every = np.empty((rows, columns), np.float32), np.arange(columns)
    for start in range(0, rows, _ROWS):
        some = np.arange(start, min(rows, start + _ROWS))
        mean[some] = np.mean([found.block(some, every).numpy() for found in members], axis=0)
    return ScoreMatrix(mean, np.arange(rows), every)
