"""All items of one modality compared with all of another, by whatever scorer the student has: every pair once.

Cosines are exact, and are computed where they are asked for. Scores of any other scorer fill a matrix, block by block,
in a mapped file; rankings of both directions, folds, subsets and single cases read it.

Shapes: n items of the first modality (rows), m of the second.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from models.encoded import Encoded, map_tensors, tensors_of
from models.loading import weights_digest
from models.scoring import PAIRS_AT_ONCE, Cosine, Scorer, cosine_similarity
from stores.atomic import write_json
from stores.errors import CusaError
from stores.ownership import json_object
from train.evaluation.exact_cosine import exact_device, full_precision
from train.evaluation.rankings import CosineRows, Ranks, Rows, block_rows, first_ranks, ranks_both_ways

Places = NDArray[np.integer[Any]]


class Similarities(ABC):
    """How alike n items of one modality and m of another are."""

    shape: tuple[int, int]

    def ranks(self, relevant: sparse.csr_array) -> tuple[Ranks, Ranks]:
        """Return each item's best rank (from 0) among its relevant partners, (n, m) sparse: (n,) and (m,)."""
        return first_ranks(self.rows(), relevant), first_ranks(self.columns(), sparse.csr_array(relevant.T))

    @abstractmethod
    def rows(self, places: Places | None = None) -> Rows:
        """Return the rows from items of the first modality, those at `places`, to all of the second."""

    @abstractmethod
    def columns(self, places: Places | None = None) -> Rows:
        """Return the rows from items of the second modality, those at `places`, to all of the first."""

    @abstractmethod
    def part(self, first: Places, second: Places) -> Self:
        """Return those of some items with some others."""

    @abstractmethod
    def block(self, first: Places, second: Places) -> Tensor:
        """Return some of them in float32, on the CPU: (p, q)."""


@dataclass(frozen=True)
class CosineSimilarities(Similarities):
    """Exact cosines of (n, D) and (m, D) vectors on one device."""

    first: Tensor
    second: Tensor

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return len(self.first), len(self.second)

    def ranks(self, relevant: sparse.csr_array) -> tuple[Ranks, Ranks]:
        return ranks_both_ways(self.first, self.second, relevant)

    def rows(self, places: Places | None = None) -> Rows:
        return CosineRows(queries=_taken(self.first, places), candidates=self.second)

    def columns(self, places: Places | None = None) -> Rows:
        return CosineRows(queries=_taken(self.second, places), candidates=self.first)

    def part(self, first: Places, second: Places) -> CosineSimilarities:
        return CosineSimilarities(_taken(self.first, first), _taken(self.second, second))

    def block(self, first: Places, second: Places) -> Tensor:
        return cosine_similarity(_taken(self.first, first), _taken(self.second, second)).float().cpu()


@dataclass(frozen=True, eq=False)
class ScoreMatrix(Similarities):
    """Scores by place: those of the items `first` and `second` among the rows and columns of an array."""

    scores: NDArray[np.float32]
    first: Places
    second: Places

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return len(self.first), len(self.second)

    def rows(self, places: Places | None = None) -> Rows:
        return _MatrixRows(self.scores, self.first if places is None else self.first[places], self.second)

    def columns(self, places: Places | None = None) -> Rows:
        return _MatrixRows(self.scores.T, self.second if places is None else self.second[places], self.first)

    def part(self, first: Places, second: Places) -> ScoreMatrix:
        return ScoreMatrix(self.scores, self.first[first], self.second[second])

    def block(self, first: Places, second: Places) -> Tensor:
        return torch.from_numpy(self.scores[np.ix_(self.first[first], self.second[second])])


@dataclass(frozen=True, eq=False)
class _MatrixRows:
    scores: NDArray[np.float32]
    queries: Places
    candidates: Places

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.candidates)

    def __iter__(self) -> Iterator[Tensor]:
        height = block_rows(torch.device("cpu"), len(self.candidates))
        for start in range(0, len(self.queries), height):
            yield torch.from_numpy(self.scores[np.ix_(self.queries[start : start + height], self.candidates)])


def similarities(
    scorer: Scorer,
    first: Encoded,
    second: Encoded,
    device: torch.device,
    folder: Path,
    pause: Callable[[], None] = lambda: None,
) -> Similarities:
    """Compare n items of one modality with m of another, both on the CPU; scores are computed on the `device`.

    In the `folder` they are kept meanwhile: an interrupted scoring goes on there. `pause` is called now and then, and
    may raise.

    Raises:
        CusaError: there are no items, or the scores are not finite or of another shape.
    """
    if not first.size or not second.size:
        raise CusaError(f"There are {first.size} and {second.size} items to compare; at least one of each is needed.")
    if isinstance(scorer, Cosine):
        exact = exact_device(device)
        return CosineSimilarities(first.vector.to(exact), second.vector.to(exact))
    scores = _filled(scorer, first, second, device, folder, pause)
    return ScoreMatrix(scores, np.arange(first.size), np.arange(second.size))


def _filled(
    scorer: Scorer, first: Encoded, second: Encoded, device: torch.device, folder: Path, pause: Callable[[], None]
) -> NDArray[np.float32]:
    """Return the (n, m) scores in a mapped file that goes with them; whole rows that are in place are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    place, state = folder / "scores.partial", folder / "scores.json"
    # Blocks nearly square: each item then travels to the device as seldom as can be.
    side = max(1, int((PAIRS_AT_ONCE / scorer.pair_bytes) ** 0.5))
    about = {"of": digest_of(scorer, first, second), "shape": [first.size, second.size]}
    known = json_object(state)
    going_on = place.exists() and {name: known.get(name) for name in about} == about
    done = int(known["finished"]) if going_on else 0
    # Before there are scores: it shows that their file is ours, and that of new ones nothing is finished.
    write_json(state, {**about, "finished": done})
    scores: NDArray[np.float32] = np.memmap(
        place, np.float32, "r+" if going_on else "w+", shape=(first.size, second.size)
    )
    for top in range(done, first.size, side):
        rows = on_device(first.take(slice(top, top + side)), device)
        for left in range(0, second.size, side):
            columns = on_device(second.take(slice(left, left + side)), device)
            scores[top : top + rows.size, left : left + columns.size] = _scored(scorer, rows, columns)
            pause()
        scores.flush()  # type: ignore[attr-defined] # of a memory map
        write_json(state, {**about, "finished": top + rows.size})
    # The map holds the file until nobody reads it any more.
    place.unlink()
    state.unlink()
    return scores


def _scored(scorer: Scorer, rows: Encoded, columns: Encoded) -> NDArray[np.float32]:
    with full_precision(rows.vector.device):
        scores = scorer.matrix(rows, columns)
    if scores.shape != (rows.size, columns.size):
        raise CusaError(
            f"The student's scorer returned {tuple(scores.shape)} for {rows.size} and {columns.size} items; expected "
            f"{(rows.size, columns.size)}."
        )
    if not torch.isfinite(scores).all():
        raise CusaError("The student's scores are not finite; the model is broken.")
    return scores.float().cpu().numpy()


def digest_of(scorer: object, *given: Encoded | Tensor) -> str:
    """Return what tells a scoring from others: the scorer, its weights and what it is given, on the CPU."""
    digest = hashlib.sha256(f"{type(scorer).__module__}.{type(scorer).__qualname__}".encode())
    if isinstance(scorer, nn.Module):
        digest.update(weights_digest(scorer).encode())
    for tensor in tensors_of(given):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def on_device(items: Encoded, device: torch.device) -> Encoded:
    """Return items on a device in float32, as a scorer takes them: parts on disk are in float16."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device).float() if tensor.is_floating_point() else tensor.to(device)

    return map_tensors(moved, items)


def _taken(vectors: Tensor, places: Places | None) -> Tensor:
    return vectors if places is None else vectors[torch.as_tensor(places, dtype=torch.int64, device=vectors.device)]
