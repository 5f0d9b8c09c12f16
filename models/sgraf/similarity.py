"""The scorer of SGR and SAF: similarity vectors of each pair, global and by word, and what a head makes of them.

Equations: arXiv 2101.01368, sections 3.2 and 3.3, in the exact form of the authors' code. Captions of equal length are
scored together, in blocks: nothing is computed for padding, and the memory is bounded.

Shapes: N images, M captions, m of one length L, R regions, d embedding, k numbers of a similarity vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.encoded import Encoded
from models.sgraf.encoders import EPSILON, GlobalVector, at_length_one, linear
from models.sgraf.reasoning import SAF, SGR, Folded, Statistics

BLOCK: Final = {"cpu": 3 * 2**21, "cuda": 2**28}
"""Bytes of the widest numbers, (N, m, L, d), of a block of pairs, by device; a few such are alive at once.

What a processor's cache holds is fastest there.
"""
CAPTIONS: Final = 8
"""Of a block, at most, so that an image's regions are read once for all of them."""
HEADS: Final = {"SGR": SGR, "SAF": SAF}
_SLOPE, _SHARPNESS = 0.1, 9.0
_TINY: Final = 1e-30
"""A squared length below it is zero, and has no gradient."""


class Images(NamedTuple):
    """Images, and what all blocks that they are scored in share."""

    vectors: Tensor
    """(N, d), the global ones."""
    regions: Tensor
    """(N, R, d)"""
    products: Tensor
    """(N, R, R), of each two regions of an image."""
    prepared: list[Folded]
    """Of the head."""

    def take(self, rows: slice | Tensor) -> Images:
        """Return some of the images."""
        return self._replace(vectors=self.vectors[rows], regions=self.regions[rows], products=self.products[rows])


Block = Callable[[Images, Encoded], tuple[Tensor, Statistics | None]]


class SimilarityVectors(nn.Module):
    """Scores of images with captions, in (0, 1).

    While training, SAF's gates are normalised by each caption's statistics over all N images, which are then not cut
    into blocks.
    """

    def __init__(self, kind: str, regions: int, dim: int, similarity: int) -> None:
        super().__init__()
        self.v_global_w, self.t_global_w = GlobalVector(dim, regions), GlobalVector(dim)
        self.sim_tranloc_w, self.sim_tranglo_w = linear(dim, similarity), linear(dim, similarity)
        self.sim_eval_w = linear(similarity, 1)
        self._head = f"{kind}_module"
        self.add_module(self._head, HEADS[kind](similarity))
        self.recomputing = False
        """Whether blocks are computed again in the backward pass, rather than kept."""
        # Of a word: whoever cuts the items leaves blocks of pairs to `matrix`, which knows their lengths.
        self.pair_bytes = 4 * (dim + similarity)

    @property
    def head(self) -> SGR | SAF:
        """What the similarity vectors go through."""
        return cast(SGR | SAF, self.get_submodule(self._head))

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        """Return the scores of every image with every caption: (N, M)."""
        together = isinstance(self.head, SAF) and self.training
        images = self._images(first)
        columns, places, noted = [], [], []
        for own, captions in _by_length(second):
            pairs = _pairs_at_once(captions)
            width = max(1, pairs // first.size) if together else min(CAPTIONS, pairs)
            for start in range(0, captions.size, width):
                some = captions.take(slice(start, start + width))
                height = first.size if together else max(1, pairs // some.size)
                blocks = [
                    self._block(self._crossed, images.take(slice(top, top + height)), some)
                    for top in range(0, first.size, height)
                ]
                columns.append(torch.cat([scores for scores, _ in blocks]))
                places.append(own[start : start + width])
                noted += [statistics for _, statistics in blocks]
        order = torch.cat(places).argsort()
        self._note(noted, order)
        return torch.cat(columns, dim=1)[:, order]

    def pairs(self, first: Encoded, second: Encoded) -> Tensor:
        """Return the scores of images each with its own caption: (N,). While training, SAF normalises each alone."""
        images = self._images(first)
        found, places, noted = [], [], []
        for own, captions in _by_length(second):
            theirs, size = images.take(own), _pairs_at_once(captions)
            for part in (slice(start, start + size) for start in range(0, captions.size, size)):
                scores, statistics = self._block(self._paired, theirs.take(part), captions.take(part))
                found.append(scores[0])
                noted.append(statistics)
            places.append(own)
        order = torch.cat(places).argsort()
        self._note(noted, order)
        return torch.cat(found)[order]

    def _images(self, encoded: Encoded) -> Images:
        regions = encoded.given_parts
        return Images(encoded.vector, regions, regions @ regions.mT, self.head.prepared())

    def _block(self, score: Block, images: Images, captions: Encoded) -> tuple[Tensor, Statistics | None]:
        if not (self.recomputing and torch.is_grad_enabled()):
            return score(images, captions)
        found: tuple[Tensor, Statistics | None] = checkpoint(
            score, images, captions, use_reentrant=False, preserve_rng_state=False
        )
        return found

    def _crossed(self, images: Images, captions: Encoded) -> tuple[Tensor, Statistics | None]:
        """Score N images with m captions of one length: (N, m)."""
        regions, words = images.regions, captions.given_parts
        shape = len(regions), regions.shape[1], *words.shape[:2]
        products = (regions.flatten(0, 1) @ words.flatten(0, 1).T).view(shape)
        differences = _differences(_attention(products).flatten(2), images, words.flatten(0, 1))
        vectors = images.vectors[:, None] - captions.vector
        return self._scores(differences.view(len(regions), *words.shape), vectors, images.prepared)

    def _paired(self, images: Images, captions: Encoded) -> tuple[Tensor, Statistics | None]:
        """Score m images each with its own caption, all of one length: (1, m)."""
        words = captions.given_parts
        attention = _attention((images.regions @ words.mT)[:, :, None]).squeeze(2)
        differences = _differences(attention, images, words)
        return self._scores(differences[None], (images.vectors - captions.vector)[None], images.prepared)

    def _scores(self, local: Tensor, overall: Tensor, prepared: list[Folded]) -> tuple[Tensor, Statistics | None]:
        """Score what each word sees less the word, (N, m, L, d), and images less captions, (N, m, d)."""
        # In place where nothing is kept for gradients: these are the widest of all tensors.
        squared = local.square() if local.requires_grad else local.square_()
        nodes = torch.cat([self.sim_tranglo_w(overall.square())[..., None, :], self.sim_tranloc_w(squared)], dim=-2)
        vectors, statistics = self.head(at_length_one(nodes), prepared)
        with torch.autocast(
            vectors.device.type, enabled=False
        ):  # in bf16, scores in (0, 1) would be equal by the dozen
            scores = self.sim_eval_w(vectors.to(self.sim_eval_w.weight.dtype)).sigmoid().squeeze(-1)
        return scores, statistics

    def _note(self, noted: list[Statistics | None], order: Tensor) -> None:
        known = [statistics for statistics in noted if statistics is not None]
        if known and isinstance(self.head, SAF):
            self.head.note(Statistics(*(torch.cat(values)[order] for values in zip(*known, strict=True))))


def _attention(similarities: Tensor) -> Tensor:
    """Return how much each word attends to each region, of their products; both (N, R, m, L).

    A region's products with the words of a caption come to length one; a softmax over the regions follows.
    """
    leaky = functional.leaky_relu(similarities, _SLOPE)
    lengths = torch.linalg.vector_norm(leaky, dim=-1, keepdim=True)
    sharp: Tensor = leaky * (_SHARPNESS / (lengths + EPSILON))
    return sharp.softmax(dim=1)


def _differences(attention: Tensor, images: Images, words: Tensor) -> Tensor:
    """Return what words see of n images, at length one, less the words, ((n,) L, d): (n, L, d).

    The length of a sum of regions, by weights (n, R, L), follows from the regions' products among themselves; weights
    over it give the sum at length one, from which the words are subtracted while it is computed.
    """
    squares = ((images.products @ attention) * attention).sum(dim=1, keepdim=True)
    scaled = attention / (squares.clamp(min=_TINY).sqrt() + EPSILON)
    return torch.baddbmm(words.expand(len(scaled), *words.shape[-2:]), scaled.mT, images.regions, beta=-1)


def _by_length(captions: Encoded) -> Iterator[tuple[Tensor, Encoded]]:
    """Yield captions of equal length, and their places; without padding and mask."""
    words = captions.given_parts
    if captions.mask is None:
        yield torch.arange(len(words), device=words.device), captions
        return
    lengths = captions.mask.sum(dim=1)
    for length in sorted(set(lengths.tolist())):
        places = (lengths == length).nonzero().squeeze(1)
        yield places, Encoded(captions.vector[places], parts=words[places, :length])


def _pairs_at_once(captions: Encoded) -> int:
    words = captions.given_parts
    return max(1, BLOCK.get(words.device.type, BLOCK["cuda"]) // words[0].nbytes)
