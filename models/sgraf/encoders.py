"""The two encoders of SGR and SAF, and the one vector that they make of an image and of a caption.

Shapes: N images, R regions of P numbers, M captions, L tokens, d embedding, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.recurrent import states_of

DROPOUT: Final = 0.4
EPSILON: Final = 1e-8
_EMBEDDING: Final = 0.1


def at_length_one(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return vectors over their length + 1e-8, as the authors have it."""
    shortened: Tensor = vectors / (torch.linalg.vector_norm(vectors, dim=dim, keepdim=True) + EPSILON)
    return shortened


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer as the authors begin: Xavier uniform, without bias at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class RegionEncoder(nn.Module):
    """(N, R, P) regions to (N, R, d) of length one."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc = linear(width, dim)

    def forward(self, regions: Tensor) -> Tensor:
        return at_length_one(self.fc(regions))


class WordEncoder(nn.Module):
    """(M, L) tokens to (M, L, d) of length one: the mean of both directions of a GRU; zero where there is no token."""

    def __init__(self, words: int, width: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        nn.init.uniform_(self.embed.weight, -_EMBEDDING, _EMBEDDING)
        self.dropout = nn.Dropout(DROPOUT)
        self.cap_rnn = nn.GRU(width, dim, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode captions of `lengths` (M,), on the CPU."""
        embedded = self.dropout(self.embed(tokens))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        found = states_of(self.cap_rnn, packed)[0]
        states, _ = pad_packed_sequence(found, batch_first=True, total_length=tokens.shape[1])
        forward, backward = states.chunk(2, dim=-1)
        return at_length_one((forward + backward) / 2)


class GlobalVector(nn.Module):
    """The sum of local vectors, weighted by how each compares with their mean: (n, L, d) to (n, d), of length one.

    Of images each region's place is a channel of its own for batch normalisation: the model is for as many regions, in
    the detector's order.
    """

    def __init__(self, dim: int, regions: int | None = None) -> None:
        super().__init__()
        norms = (nn.BatchNorm1d(regions), nn.BatchNorm1d(dim)) if regions else ()
        self.embedding_local = nn.Sequential(linear(dim, dim), *norms[:1], nn.Tanh(), nn.Dropout(DROPOUT))
        self.embedding_global = nn.Sequential(linear(dim, dim), *norms[1:], nn.Tanh(), nn.Dropout(DROPOUT))
        self.embedding_common = nn.Sequential(linear(dim, 1))

    def forward(self, local: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare local vectors, those of the `mask` (n, L) alone; the others must be zero."""
        count = local.shape[1] if mask is None else mask.sum(dim=1, keepdim=True)
        common = self.embedding_local(local) * self.embedding_global(local.sum(dim=1) / count)[:, None]
        weights = self.embedding_common(common).squeeze(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, -torch.inf)
        return at_length_one((weights.softmax(dim=1)[..., None] * local).sum(dim=1))
