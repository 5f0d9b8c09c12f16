"""BLIP's retrieval models (arXiv 2201.12086), from transformers' `BlipForImageTextRetrieval`, as students that match.

Its text model reads a text by itself for the cosine (ITC), and once more from its tokens, attending to the image, for
matching (ITM): a text's parts are its tokens' numbers. In matching the first token is [ENC], as in the authors' code.

Shapes: n images of L tokens, P texts of K tokens, D = 256.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval

from models.cross_attention import KeysAndValues, fused, keys_and_values, uncased_tokenizer
from models.encoded import Encoded
from models.inputs import Input, Padded, Pixels, Tensors, Tokens
from models.loading import shortened
from models.scoring import Cosine
from models.students import Parts
from models.x2vlm import squared
from stores.errors import WeightsError

ENC: Final = 30_523
"""The token's number, after BERT's own and [DEC]."""
SIGNS: Final = '.!"()*#:;~'
"""Of a caption, taken for spaces."""
_TOKENS: Final = 35


class Blip(nn.Module):
    """The student; its parameters are those of transformers' model, under the same names after `model.`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = int(model.config.image_text_hidden_size)
        vocabulary = model.config.text_config.vocab_size
        self.inputs: dict[str, Input] = {
            "image": Pixels(squared(model.config.vision_config.image_size)),
            "text": Tokens(uncased_tokenizer(SIGNS, _TOKENS, vocabulary), padding=0),
        }
        self.scorer = Cosine()
        self._checkpointed = False

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        if modality == "image":
            tokens = self.model.vision_model(pixel_values=tensors).last_hidden_state
            return Encoded(self.model.vision_proj(tokens[:, 0]), parts=tokens)
        ids, mask = tensors if isinstance(tensors, Padded) else (tensors, tensors != 0)
        hidden = self.model.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Encoded(self.model.text_proj(hidden[:, 0]), parts=ids[..., None], mask=mask)

    def prepare_match(self, images: Encoded) -> KeysAndValues:
        """Return the keys and values of n images' tokens in every layer of the text model."""
        return keys_and_values(self._layers, images.given_parts.to(self.model.itm_head.weight.dtype))

    def match(self, images: Encoded | KeysAndValues, texts: Encoded) -> Tensor:
        """Return the logits of no match and of match: (P, 2). `images` are P or one, prepared or not."""
        image = self.prepare_match(images) if isinstance(images, Encoded) else images
        ids = texts.given_parts[..., 0].clone()
        mask = ids.new_ones(ids.shape, dtype=torch.bool) if texts.mask is None else texts.mask
        ids[:, 0] = ENC
        hidden = self.model.text_encoder.embeddings(input_ids=ids)
        checkpointed = self._checkpointed and self.training
        together = fused(self._layers, hidden, mask, image, checkpointed)
        logits: Tensor = self.model.itm_head(together[:, 0])
        return logits

    @property
    def towers(self) -> dict[str, Parts]:
        """The image model and the text model, which is also what matches, with their projections."""
        model = self.model
        return {"image": [model.vision_model, model.vision_proj], "text": [model.text_encoder, model.text_proj]}

    @property
    def matching_parts(self) -> Parts:
        """What attends to the image in the text model's layers, and the head."""
        return [*(layer.crossattention for layer in self._layers), self.model.itm_head]

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass."""
        self.model.activation_checkpointing_enable()
        self._checkpointed = True

    @property
    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.text_encoder.encoder.layer
        return layers


def load_blip(name: str) -> Blip:
    """Return the student of a model on transformers' hub, such as Salesforce/blip-itm-base-coco, or of a folder.

    Raises:
        WeightsError: it cannot be loaded, or is none of BLIP's retrieval models.
    """
    try:
        model, report = BlipForImageTextRetrieval.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # transformers and its hub have no common base for what they raise
        raise WeightsError(
            f"BLIP {name!r} could not be loaded: {shortened(error)} Name a model of transformers' hub (this machine "
            f"must reach it once), such as Salesforce/blip-itm-base-coco, or a folder that holds one."
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"lacks {', '.join(missing[:3])}", path=name, expected="weights of a BLIP for retrieval")
    if (vocabulary := model.config.text_config.vocab_size) <= ENC:
        raise WeightsError("vocabulary", path=name, found=vocabulary, expected=f"more than {ENC:,} tokens, with [ENC]")
    return Blip(model.eval())
