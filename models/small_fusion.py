"""A small student that matches: the embedded student's towers, and over them a fusion encoder of two layers.

An image's tokens are the 8 × 8 places of its convolutional tower, a text's the states of its words; the words attend
to the places. `student.model: models.small_fusion:small_fusion`; train it with `loss.recipe: x2vlm`.

Shapes: n images of 64 tokens of width 64, P texts of K tokens of width 64, D = 128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from models.cross_attention import KeysAndValues, fused, keys_and_values
from models.encoded import Encoded
from models.inputs import Input, Padded, Pixels, Tensors, Tokens
from models.open_clip_student import OpenClipStudent, encode_words
from models.scoring import Cosine
from models.students import Parts

WIDTH, PLACES, LAYERS = 64, 64, 2


class SmallFusion(nn.Module):
    """The student; its first stage is that of the towers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.towers_alone = OpenClipStudent("small-clip", None)
        self.embed_dim = self.towers_alone.embed_dim
        # Which place of the grid a token is, no convolution's output tells.
        self.places = nn.Parameter(torch.randn(PLACES, WIDTH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)
        config = BertConfig(
            vocab_size=1,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=WIDTH**-0.5,
            is_decoder=True,
            add_cross_attention=True,
        )
        self.fusion: Any = BertModel(config).encoder
        self.head = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, 2))
        towers = self.towers_alone
        self.inputs: dict[str, Input] = {
            "image": Pixels(towers.eval_transform, towers.train_transform),
            "text": Tokens(towers.tokenizer, padding=0),
        }
        self.scorer = Cosine()

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        model: Any = self.towers_alone.model
        if isinstance(tensors, Padded):
            words, embedding = encode_words(model, tensors.values)
            return Encoded(embedding, parts=words, mask=tensors.mask)
        grid = model.visual.trunk(tensors)
        tokens = self.norm(grid.view(len(grid), WIDTH, PLACES).transpose(1, 2)) + self.places
        return Encoded(model.visual.head(grid), parts=tokens)

    def prepare_match(self, images: Encoded) -> KeysAndValues:
        """Return the keys and values of n images' places in both layers."""
        return keys_and_values(self.fusion.layer, images.given_parts)

    def match(self, images: KeysAndValues, texts: Encoded) -> Tensor:
        """Return the logits of no match and of match: (P, 2)."""
        if texts.parts is None or texts.mask is None:
            raise ValueError("Texts are matched by their words, and these have none.")
        logits: Tensor = self.head(fused(self.fusion.layer, texts.parts, texts.mask, images, False)[:, 0])
        return logits

    @property
    def towers(self) -> dict[str, Parts]:
        """The embedded student's; what fuses is of neither."""
        return self.towers_alone.towers

    @property
    def matching_parts(self) -> Parts:
        """What fuses, and what makes an image's tokens: the vectors are of the convolutional tower alone."""
        return [self.places, self.norm, self.fusion, self.head]


def small_fusion() -> SmallFusion:
    """Return the student with random weights."""
    return SmallFusion()
