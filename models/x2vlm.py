"""X2-VLM (arXiv 2211.12402): BEiT-2 and BERT, compared by cosine, and a fusion encoder that matches one text and image.

1. The image encoder's patch tokens are normalised, and their mean is put before them; the text encoder's hidden states
   are a text's tokens. The first token of either, projected, is its vector: cosines rank (ITC).
2. In the fusion encoder the text's tokens attend to the image's; of its first token a head makes two logits (ITM).

Shapes: n images of L = 1 + g² tokens of width V, P texts of K tokens of width W, D = 256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.data.auto_augment import RandAugment, rand_augment_ops
from timm.models.beit import Beit
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import BertConfig, BertModel

from models.cross_attention import KeysAndValues, fused, keys_and_values, uncased_tokenizer
from models.encoded import Encoded
from models.export import exported
from models.inputs import Input, Padded, Pixels, Tensors, Tokens
from models.preprocessing import Transform
from models.scoring import Cosine
from models.students import Parts

SIGNS: Final = ",.'!?\"()*#:;~-/"
"""Of a caption, taken for spaces."""
FUSION: Final = "fusion_encoder.layer."
LAYER: Final = "text_encoder.encoder.layer."
"""What X2-VLM's files call all layers, those of the fusion encoder after the text encoder's."""
_OPERATIONS: Final = [
    "AutoContrast",
    "Brightness",
    "Equalize",
    "Rotate",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]


@dataclass(frozen=True, kw_only=True)
class TowerSize:
    """The measures of a transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072


@dataclass(frozen=True, kw_only=True)
class Size:
    """What an X2-VLM's weights are as large as; here the base one's."""

    pixels: int = 384
    patch: int = 16
    image: TowerSize = TowerSize()
    text: TowerSize = TowerSize()
    fusion_layers: int = 6
    vocabulary: int = 30_522
    positions: int = 512
    types: int = 2
    dim: int = 256
    tokens: int = 40
    """How many a text may have."""


class X2VLM(nn.Module):
    """The student; its modules have the names of X2-VLM's files, but for the fusion encoder."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, self.embed_dim = size, size.dim
        image, text = size.image, size.text
        self.vision_encoder: Any = Beit(
            img_size=size.pixels,
            patch_size=size.patch,
            num_classes=0,
            global_pool="avg",
            embed_dim=image.width,
            depth=image.layers,
            num_heads=image.heads,
            mlp_ratio=(image.hidden + 0.5) / image.width,  # which is cut to a whole number of them
            drop_path_rate=0.1,
            init_values=0.1,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
        )
        self.text_encoder: Any = BertModel(_bert(size, text.layers), add_pooling_layer=False)
        fusion = BertModel(_bert(size, size.fusion_layers, is_decoder=True, add_cross_attention=True))
        self.fusion_encoder: Any = fusion.encoder
        for layer in self.fusion_encoder.layer if image.width != text.width else []:
            attention = layer.crossattention.self
            attention.key, attention.value = (nn.Linear(image.width, text.width) for _ in range(2))
        self.vision_proj, self.text_proj = nn.Linear(image.width, size.dim), nn.Linear(text.width, size.dim)
        head = nn.LayerNorm(2 * text.width), nn.GELU(), nn.Linear(2 * text.width, 2)
        self.itm_head = nn.Sequential(nn.Linear(text.width, 2 * text.width), *head)
        # The objective's temperature stands in for it while training.
        self.temp = nn.Parameter(torch.tensor(0.07), requires_grad=False)
        tokenizer = uncased_tokenizer(SIGNS, size.tokens, size.vocabulary)
        self.inputs: dict[str, Input] = {
            "image": Pixels(squared(size.pixels), _augmented(size.pixels)),
            "text": Tokens(tokenizer, padding=0),
        }
        self.scorer = Cosine()
        self._checkpointed = False

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        if modality == "image":
            patches = self.vision_encoder.fc_norm(self.vision_encoder.forward_features(tensors)[:, 1:])
            tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
            return Encoded(self.vision_proj(tokens[:, 0]), parts=tokens)
        ids, mask = tensors if isinstance(tensors, Padded) else (tensors, tensors != 0)
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return Encoded(self.text_proj(hidden[:, 0]), parts=hidden, mask=mask)

    def prepare_match(self, images: Encoded) -> KeysAndValues:
        """Return the keys and values of n images' tokens in every layer of the fusion encoder."""
        return keys_and_values(self.fusion_encoder.layer, images.given_parts.to(self.temp.dtype))

    def match(self, images: Encoded | KeysAndValues, texts: Encoded) -> Tensor:
        """Return the logits of no match and of match: (P, 2). `images` are P or one, prepared or not."""
        image = self.prepare_match(images) if isinstance(images, Encoded) else images
        hidden = texts.given_parts.to(self.temp.dtype)
        mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if texts.mask is None else texts.mask
        layers = self.fusion_encoder.layer
        together = fused(layers, hidden, mask, image, self._checkpointed and self.training)
        logits: Tensor = self.itm_head(together[:, 0])
        return logits

    @property
    def towers(self) -> dict[str, Parts]:
        """The encoders and their projections; the fusion encoder is of neither."""
        return {
            "image": [self.vision_encoder, self.vision_proj],
            "text": [self.text_encoder, self.text_proj],
        }

    @property
    def matching_parts(self) -> Parts:
        """The fusion encoder and its head."""
        return [self.fusion_encoder, self.itm_head]

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass, in all three encoders."""
        self.vision_encoder.set_grad_checkpointing(True)
        self.text_encoder.activation_checkpointing_enable()
        self._checkpointed = True


@exported.register
def _exported(student: X2VLM, tau: float | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights under the authors' keys; `temp` is the learned temperature, where one was."""
    state = {}
    for key, tensor in student.state_dict().items():
        name = key
        if key.startswith(FUSION):
            layer, _, rest = key.removeprefix(FUSION).partition(".")
            name = f"{LAYER}{int(layer) + student.size.text.layers}.{rest}"
        state[name] = tensor
    if tau is not None:
        state["temp"] = torch.full_like(state["temp"], tau)
    config = {"num_attention_heads": student.size.text.heads, "max_tokens": student.size.tokens}
    return state, {"config": json.dumps(config)}


def _bert(size: Size, layers: int, **settings: Any) -> Any:
    return BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.text.width,
        num_hidden_layers=layers,
        num_attention_heads=size.text.heads,
        intermediate_size=size.text.hidden,
        max_position_embeddings=size.positions,
        type_vocab_size=size.types,
        **settings,
    )


def squared(pixels: int) -> Transform:
    """Return what resizes an image to a square, (3, S, S), and normalises it by CLIP's mean and deviation."""
    size = v2.Resize((pixels, pixels), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return _tensors(size)


def _augmented(pixels: int) -> Transform:
    """Return the authors' augmentation but for the mirror: captions say left and right."""
    mean = tuple(round(255 * channel) for channel in OPENAI_DATASET_MEAN)
    operations = rand_augment_ops(7, hparams={"img_mean": mean}, transforms=_OPERATIONS)
    cropped = v2.RandomResizedCrop(pixels, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return _tensors(cropped, RandAugment(operations, num_layers=2))


def _tensors(*steps: Any) -> Transform:
    transform: Transform = v2.Compose(
        [
            *steps,
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        ]
    )
    return transform
