"""Students that are more than two towers: sets of vectors compared by assignment, and stored regions against words."""

from __future__ import annotations

import torch
from tiny_students import Tiny
from torch import Tensor, nn
from torch.nn import functional

from models import scoring
from models.encoded import Encoded
from models.inputs import Padded, Pixels, Stored, Tensors, Tokens
from models.scoring import Pairwise

MEMBERS, WIDTH = 3, 16


class Assignment(scoring.Assignment):
    """Assignment that counts what it measures."""

    measured = 0
    """Pairs that were scored without gradients, by all of these."""

    def matrix(self, first: Encoded, second: Encoded) -> Tensor:
        if not torch.is_grad_enabled():
            Assignment.measured += first.size * second.size
        return super().matrix(first, second)


class Sets(Tiny):
    """Each item is a set of vectors; their mean stands for it within its modality."""

    embed_dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.image[-1] = nn.Linear(32, MEMBERS * WIDTH)
        self.text[-1] = nn.Linear(32, MEMBERS * WIDTH)
        self.inputs = {"image": Pixels(self.eval_transform, self.train_transform), "text": Tokens(self.tokenizer)}
        self.scorer = Assignment()

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        flat = self.encode_text(tensors.values) if isinstance(tensors, Padded) else self.encode_image(tensors)
        members = flat.view(len(flat), MEMBERS, WIDTH)
        return Encoded(members.mean(dim=1), parts=members, shared=members.amax(dim=1))


class Words(nn.Module):
    """How well each word of a text finds its region: the best cosine of each, averaged and scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, regions: Encoded, words: Encoded) -> Tensor:
        cosines = functional.normalize(words.parts, dim=-1) @ functional.normalize(regions.parts, dim=-1).mT
        best = cosines.amax(dim=2) * words.mask
        return torch.sigmoid(self.scale * best.sum(dim=1) / words.mask.sum(dim=1))


class Regions(nn.Module):
    """36 stored vectors of an image against the words of a text, of as many letters as it has."""

    embed_dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.regions, self.letters = nn.Linear(5, WIDTH), nn.Embedding(256, WIDTH)
        self.inputs = {"image": Stored("regions"), "text": Tokens(self.tokenizer, padding=0)}
        self.scorer = Pairwise(Words(), pair_bytes=4 * 36 * 60)
        self.towers = {"image": [self.regions], "text": [self.letters]}

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        if isinstance(tensors, Padded):
            words, mask = self.letters(tensors.values), tensors.mask
            mean = (words * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return Encoded(mean, parts=words, mask=mask)
        parts = self.regions(tensors)
        return Encoded(parts.mean(dim=1), parts=parts)

    @staticmethod
    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor(
            [[1 + ord(letter) % 250 for letter in text[:60]] + [0] * (60 - len(text)) for text in texts]
        )
