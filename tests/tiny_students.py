"""Students as users write them: small, without batch normalisation, one with dropout, one with its own similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Tiny(nn.Module):
    """Mean colours of an 8 × 8 grid, and the mean of letter embeddings; with dropout in both towers."""

    embed_dim = 16
    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(192, 32), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(32, 16))
        self.letters = nn.Embedding(256, 32)
        self.text = nn.Sequential(nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(32, 16))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(self.letters(tokens).mean(dim=1))

    def train_transform(self, image: Image.Image) -> Tensor:
        """As measured, with noise from each of the three generators that augmentations use."""
        return self.eval_transform(image) + 0.1 * (torch.rand(192) + float(np.random.random()))

    def eval_transform(self, image: Image.Image) -> Tensor:
        return torch.tensor(np.asarray(image.resize((8, 8))).reshape(192), dtype=torch.float32) / 255

    def tokenizer(self, texts: list[str]) -> Tensor:
        return torch.tensor([[ord(letter) % 256 for letter in text[:60].ljust(60)] for text in texts])


class Dropping(Tiny):
    """The same, with dropout."""

    dropout = 0.3


class Weighing(Tiny):
    """The same, with a learned similarity of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return (self.weight * nn.functional.normalize(images)) @ nn.functional.normalize(texts).T


class Strict(Tiny):
    """The same, with a similarity that tells training from measuring."""

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        assert self.training == torch.is_grad_enabled(), "measured in training mode"
        return nn.functional.normalize(images) @ nn.functional.normalize(texts).T


class Lowered(Weighing):
    """The same, telling in which precision it is compared, with gradients and without."""

    compared: ClassVar[set[tuple[bool, torch.dtype]]] = set()

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        scores = super().similarity(images, texts)
        Lowered.compared.add((torch.is_grad_enabled(), scores.dtype))
        return scores


class Projected(Dropping):
    """The same, each tower followed by a projection that learns though the tower be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({modality: nn.Linear(16, 16) for modality in ("image", "text")})
        self.towers = {"image": [self.image], "text": [self.letters, self.text]}

    def encode_image(self, images: Tensor) -> Tensor:
        return self.projections["image"](super().encode_image(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.projections["text"](super().encode_text(tokens))


class Halved(Projected):
    """The same, telling what may be computed once."""

    calls = 0

    @property
    def halves(self) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
        halves = {"image": Dropping.encode_image, "text": Dropping.encode_text}
        return {modality: (self.counted(half), self.projections[modality]) for modality, half in halves.items()}

    def counted(self, half: Callable[[Tiny, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def outputs(inputs: Tensor) -> Tensor:
            Halved.calls += len(inputs)
            return half(self, inputs)

        return outputs
