"""What a student makes of items: one type that everything else passes on, cuts, joins and gathers unread.

Shapes: n items, D embedding, L parts of width W.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
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


def _is_tensor(part: Any) -> bool:
    return isinstance(part, Tensor)


def map_tensors(change: Callable[[Any], Any], tree: Tree, leaf: Callable[[Any], bool] = _is_tensor) -> Tree:
    """Return nested tuples, named tuples, lists and mappings with every `leaf` changed; whatever else stays."""
    mapped: Any = tree
    if leaf(tree):
        mapped = change(tree)
    elif isinstance(tree, tuple | list):
        branches = [map_tensors(change, branch, leaf) for branch in tree]
        mapped = type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    elif isinstance(tree, MutableMapping):
        mapped = copy(tree)  # a tokenizer's output is more than a dict, and a teacher may count on it
        mapped.update({name: map_tensors(change, branch, leaf) for name, branch in tree.items()})
    return mapped  # type: ignore[no-any-return]


def moved(tree: Tree, device: torch.device) -> Tree:
    """Return the same with its tensors on a device, which copies from pinned memory while it computes."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def tensors_of(tree: Any, leaf: Callable[[Any], bool] = _is_tensor) -> list[Any]:
    """Return the tensors of nested tuples, lists and mappings, in their order, or what else is a `leaf`."""
    found: list[Any] = []
    map_tensors(found.append, tree, leaf)
    return found


def with_tensors(tree: Tree, tensors: Sequence[Tensor]) -> Tree:
    """Return `tree` with `tensors` in the places of its own, as `tensors_of` lists them."""
    left = iter(tensors)
    return map_tensors(lambda _: next(left), tree)
