"""What a student makes of items: one type that everything else passes on, cuts, joins and gathers unread.

Shapes: n items, D embedding, L parts of width W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Tree = TypeVar("Tree")


class Encoded(NamedTuple):
    """n items of one modality."""

    vector: Tensor
    """(n, D), not normalised: what the cosine, an index, the export and a first stage see."""
    uni: Tensor | None = None
    """(n, D) of the uni-modal head; None: there is none, and the vector stands in (`unimodal`)."""
    parts: Tensor | None = None
    """(n, L, W) regions, words, members of a set: for scorers that compare them."""
    mask: Tensor | None = None
    """(n, L) bool: which parts there are; None: all."""
    shared: Tensor | None = None
    """(n, W): the vector that each part is a sum with; for losses that push parts away from it."""

    @property
    def size(self) -> int:
        """How many items these are, n."""
        return len(self.vector)

    @property
    def unimodal(self) -> Tensor:
        """(n, D): what uni-modal tasks and losses see."""
        return self.vector if self.uni is None else self.uni

    @property
    def given_parts(self) -> Tensor:
        """(n, L, W): the parts, for a student whose items have some; a ValueError where these have none."""
        if self.parts is None:
            raise ValueError("Items are compared by their parts, and these have none.")
        return self.parts

    def take(self, rows: slice | Tensor) -> Encoded:
        """Return some of the items."""
        return map_tensors(lambda tensor: tensor[rows], self)

    def padded(self, length: int) -> Encoded:
        """Return the items with parts of `length` at least; those added are masked out."""
        if self.parts is None or self.parts.shape[1] >= length:
            return self
        missing = length - self.parts.shape[1]
        mask = _whole(self.parts) if self.mask is None else self.mask
        return self._replace(
            parts=functional.pad(self.parts, (0, 0, 0, missing)), mask=functional.pad(mask, (0, missing))
        )

    def masked(self) -> Encoded:
        """Return the items with a mask, if they have parts."""
        if self.parts is None or self.mask is not None:
            return self
        return self._replace(mask=_whole(self.parts))


def concatenated(pieces: Sequence[Encoded]) -> Encoded:
    """Return the items of all pieces, one after another; parts are padded to the longest."""
    longest = max(0 if piece.parts is None else piece.parts.shape[1] for piece in pieces)
    padded = [piece.padded(longest) for piece in pieces]
    if any(piece.mask is not None for piece in padded):
        padded = [piece.masked() for piece in padded]
    joined = [None if tensors[0] is None else torch.cat(tensors) for tensors in zip(*padded, strict=True)]
    return Encoded(*joined)  # type: ignore[arg-type] # the vector is never None


def _whole(parts: Tensor) -> Tensor:
    return torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device)


def map_tensors(change: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Return nested tuples, named tuples, lists and mappings with every tensor changed; whatever else stays."""
    mapped: Any = tree
    if isinstance(tree, Tensor):
        mapped = change(tree)
    elif isinstance(tree, tuple | list):
        branches = [map_tensors(change, branch) for branch in tree]
        mapped = type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    elif isinstance(tree, Mapping):
        mapped = {name: map_tensors(change, branch) for name, branch in tree.items()}
    return mapped  # type: ignore[no-any-return]


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and mappings, in their order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def with_tensors(tree: Tree, tensors: Sequence[Tensor]) -> Tree:
    """Return `tree` with `tensors` in the places of its own, as `tensors_of` lists them."""
    left = iter(tensors)
    return map_tensors(lambda _: next(left), tree)
