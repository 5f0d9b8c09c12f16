"""Students whose items are sets of K vectors, compared by best assignment (MaxMatch, arXiv 2506.21538).

`maxmatch:<image encoder>+<text encoder>[@<D>]`:

1. An encoder makes an item's local features: the cells of a timm model's last feature map, pooled to 6 × 6, or `stored`
   ones that `student.heads.image` names; the token states of a sentence encoder, or with `words:<text encoder>` its
   tokens' input vectors alone. What frozen encoders make is computed once (`train.fit.frozen_towers`).
2. A projection takes them to D numbers; their maximum over the item is the global vector φ, of words the mean of the
   last states of a GRU's two directions.
3. K learned slots gather from them in rounds of slot attention, weights in common: slots compete for each local
   feature. Padding is masked after the softmax over the slots; the base's code masks before it, and lets it in.
4. A member is unit(LN φ + LN slot).

MaxMatch's code is not released; the module is its base's, DivE (CVPR 2023), in the light form for frozen encoders, with
layer normalisation in place of the batch's. Shapes: n items, L local features of width W, K members, D embedding.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from models.encoded import Encoded
from models.inputs import Input, Pixels, Stored, Tensors, Tokens
from models.recurrent import states_of
from models.scoring import Assignment, unit
from models.students import HalvedStudent, Parts
from models.timm_networks import feature_map, timm_network
from models.two_encoders import TextEncoder, augmented, named_encoders
from stores import parameters
from stores.errors import StudentError
from stores.parameters import Sets

GRID: Final = 6
"""Cells of a feature map, each way."""
LONGEST: Final = 48
"""Tokens of a text, beyond which it is cut: frozen states of all texts are kept in one table."""
HEAD: Final = 64
"""Numbers of a head of the slot attention."""
DROPPED: Final = 0.2
"""Of an item's local features, in training."""
DROPOUT: Final = 0.1
WORDS: Final = "words:"
STORED: Final = "stored"


class MaxMatch(HalvedStudent, nn.Module):
    """Two encoders of local features, each followed by a set predictor."""

    def __init__(self, image: str, text: str, dim: int, settings: parameters.Student) -> None:
        nn.Module.__init__(self)
        self.embed_dim = dim
        words = text.removeprefix(WORDS)
        pictures = StoredRegions(settings) if image == STORED else FeatureMap(image)
        tokens = TokenStates(text) if words == text else WordVectors(words)
        self.encoders = nn.ModuleDict({"image": pictures, "text": tokens})
        sets = settings.sets
        self.predictors = nn.ModuleDict(
            {
                "image": SetPredictor(pictures.width, dim, sets, positions=image != STORED),
                "text": SetPredictor(tokens.width, dim, sets, positions=words != text, sequence=words != text),
            }
        )
        inputs: dict[str, Input] = {"image": pictures.input, "text": Tokens(tokens.tokenize, tokens.padding)}
        halves = {name: (self.encoders[name], self.predictors[name]) for name in inputs}
        HalvedStudent.__init__(self, inputs, halves)
        self.scorer = Assignment(sets.activation)

    @property
    def towers(self) -> dict[str, Parts]:
        """The encoders; the set predictors learn in any case."""
        return {name: [one] for name, one in self.encoders.items() if not isinstance(one, StoredRegions)}

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode n items: K members as parts, their mean as vector, and φ as what they share."""
        shared, slots = self.second_half(modality, tensors)
        parts = shared[:, None] + slots
        return Encoded(unit(parts).mean(dim=1), parts=parts, shared=shared)


class FeatureMap(nn.Module):
    """A timm model's last feature map, at 6 × 6: (n, 3, H, W) images to (n, 36, W)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm_network(name)
        settings = resolve_model_data_config(self.network)
        self.input = Pixels(create_transform(**settings, is_training=False), augmented(settings))
        self.width = int(self.network.num_features)

    def forward(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(feature_map(self.network, images), GRID).flatten(2).mT


class StoredRegions(nn.Identity):
    """Local features that the store holds under a name, in the place of an encoder: (n, L, W)."""

    def __init__(self, settings: parameters.Student) -> None:
        super().__init__()
        head = settings.heads.get("image")
        if head is None or head.features is None or head.width is None:
            example = "{image: {features: regions}}"
            raise StudentError(f"{settings.model} reads features of images: say which by student.heads, as {example}.")
        self.width, self.input = head.width, Stored(head.features, head.level or "sample")


class TokenStates(nn.Module):
    """A sentence encoder's token states: (n, L) tokens to (n, 48, W), padding zero."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = TextEncoder(name, LONGEST)
        self.width, self.padding, self.tokenize = self.encoder.width, self.encoder.padding, self.encoder.tokenize

    def forward(self, tokens: Tensor) -> Tensor:
        return _padded(self.encoder.states(tokens), tokens != self.padding)


class WordVectors(nn.Module):
    """A sentence encoder's input vectors of tokens, which learn: (n, L) tokens to (n, 48, W), padding zero."""

    def __init__(self, name: str) -> None:
        super().__init__()
        encoder = TextEncoder(name, LONGEST)
        self.padding, self.tokenize = encoder.padding, encoder.tokenize
        vectors = encoder.word_vectors
        words, self.width = vectors.shape
        self.table = nn.Embedding(words, self.width, _weight=vectors.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return _padded(self.table(tokens), tokens != self.padding)


def _padded(found: Tensor, mask: Tensor) -> Tensor:
    return functional.pad(found * mask[..., None], (0, 0, 0, LONGEST - mask.shape[1]))


class SetPredictor(nn.Module):
    """(n, L, W) local features to φ and K slots, both after layer normalisation; features of zeros are padding."""

    def __init__(self, width: int, dim: int, sets: Sets, positions: bool, sequence: bool = False) -> None:
        """Slots are told the `positions` of features; φ of a `sequence` is that of a GRU."""
        super().__init__()
        self.recurrent = nn.GRU(width, dim, batch_first=True, bidirectional=True) if sequence else None
        self.rounds, self.positions = sets.rounds, positions
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.refine = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(dim // 2, dim)
        )
        self.slots = nn.Parameter(torch.randn(sets.members, dim))
        self.local_norm, self.slot_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SlotAttention(dim, sets.heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(4 * dim, dim)
        )
        self.shared_norm, self.final_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Return LN φ (n, D) and LN slots (n, K, D)."""
        mask = (found != 0).any(dim=2)
        used = mask.any(dim=0)
        used[0] |= ~used.any()
        found, mask = found[:, used], mask[:, used]
        local = self.project(found)
        local = local + self.refine(local)
        if self.training:
            mask = _some_dropped(mask)
        shared = _largest(local, mask) if self.recurrent is None else _last_states(self.recurrent, found, mask)
        keys = values = self.local_norm(local)
        if self.positions:
            keys = keys + _sines(len(used), keys.shape[2], keys.device)[used]
        slots = self.slots.expand(len(found), -1, -1)
        for _ in range(self.rounds):
            slots = slots + self.attention(self.slot_norm(slots), keys, values, mask)
            slots = slots + self.feed_forward(self.forward_norm(slots))
        return self.shared_norm(shared), self.final_norm(slots)


class SlotAttention(nn.Module):
    """Attention in which the slots compete for each local feature: softmax over slots, then a mean over features."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, heads * HEAD, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * HEAD, dim)

    def forward(self, slots: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return (n, K, D) updates of the slots by (n, L, D) features, of which `mask` (n, L) bool are there."""
        query, key, value = (
            layer(given).unflatten(2, (self.heads, HEAD)).transpose(1, 2)
            for layer, given in ((self.query, slots), (self.key, keys), (self.value, values))
        )
        shares = (query @ key.mT / HEAD**0.5).softmax(dim=2) * mask[:, None, None]
        shares = shares / (shares.sum(dim=3, keepdim=True) + 1e-7)
        updates: Tensor = self.out((shares @ value).transpose(1, 2).flatten(2))
        return updates


def max_match(name: str, settings: parameters.Student) -> MaxMatch:
    """Return the student of `<image encoder>+<text encoder>[@<D>]`, such as `efficientnet-lite0+minilm@256`.

    Raises:
        StudentError: the name is of another form, or it reads stored features that are not named.
        WeightsError: an encoder cannot be had.
    """
    return MaxMatch(*named_encoders("maxmatch", name), settings)


def _largest(local: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum over the (n, L, D) features that are there: (n, D); of none, zero."""
    lowest = local.masked_fill(~mask[..., None], torch.finfo(local.dtype).min)
    return lowest.amax(dim=1).masked_fill(~mask.any(dim=1)[:, None], 0)


def _last_states(recurrent: nn.GRU, found: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of both directions' last states over the (n, L, W) features that are there: (n, D)."""
    first = (~mask).int().argsort(dim=1, stable=True)  # those that are there, in their order
    kept = found.gather(1, first[..., None].expand_as(found))
    lengths = mask.sum(dim=1).clamp(min=1).cpu()
    packed = pack_padded_sequence(kept, lengths, batch_first=True, enforce_sorted=False)
    return states_of(recurrent, packed)[1].mean(dim=0)


def _some_dropped(mask: Tensor) -> Tensor:
    """Return which features stay, each with a chance; of an item that would keep none, all."""
    kept = mask & (torch.rand(mask.shape, device=mask.device) >= DROPPED)
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask)


def _sines(length: int, dim: int, device: torch.device) -> Tensor:
    """Return sine positions (L, D): sines of falling frequencies, then their cosines."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000) / dim))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]
