"""Students of two pretrained encoders that never met, with new projections into one space: `towers:<image>+<text>@<D>`.

Shapes: n items, W an encoder's own width, D the student's embedding size, L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import v2

from models.preprocessing import Transform
from models.sentence_models import sentence_model
from models.students import Halves, Parts
from models.timm_networks import timm_network
from stores.errors import StudentError

DIM: Final = 256
_CROP: Final = (0.9, 1.0)
"""Of the picture's area, at random, in training with `train.augment`: captions speak of the whole picture."""


class TwoEncoders(nn.Module):
    """A timm image encoder and a sentence-transformers text encoder, each followed by a projection."""

    def __init__(self, image: str, text: str, dim: int) -> None:
        super().__init__()
        self.embed_dim = dim
        self.image, self.text = timm_network(image), TextEncoder(text)
        settings = resolve_model_data_config(self.image)
        self.eval_transform: Transform = create_transform(**settings, is_training=False)
        self.train_transform: Transform = augmented(settings)
        widths = {"image": int(self.image.num_features), "text": self.text.width}
        self.projections = nn.ModuleDict({modality: projection(width, dim) for modality, width in widths.items()})

    @property
    def towers(self) -> dict[str, Parts]:
        """The encoders; the new projections learn in any case."""
        return {"image": [self.image], "text": [self.text]}

    @property
    def halves(self) -> dict[str, Halves]:
        """By modality, the encoder, to (n, W), and its projection."""
        return {name: (tower, self.projections[name]) for name, tower in (("image", self.image), ("text", self.text))}

    @property
    def padding(self) -> int:
        """The token that fills a text's end."""
        return self.text.padding

    def tokenizer(self, texts: list[str]) -> Tensor:
        """Return the texts' tokens, as long as the encoder takes them: (n, L)."""
        return self.text.tokenize(texts)

    def encode_image(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.projections["image"](self.image(images))
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.projections["text"](self.text(tokens))
        return embedding

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass.

        Raises:
            StudentError: the image encoder cannot do so.
        """
        try:
            self.image.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise StudentError(f"The image encoder cannot do gradient checkpointing: {error}") from None
        self.text.set_grad_checkpointing()


class TextEncoder(nn.Module):
    """A sentence-transformers model as a tower: (n, L) tokens to (n, W)."""

    def __init__(self, name: str, longest: int | None = None) -> None:
        """Load it; texts are cut to the `longest` number of tokens, or to what the encoder takes."""
        super().__init__()
        self.model = sentence_model(name, torch.device("cpu"))
        width = self.model.get_embedding_dimension()
        tokenizer: Any = self.model.tokenizer
        if width is None or getattr(tokenizer, "pad_token_id", None) is None or tokenizer.padding_side != "right":
            raise StudentError(name, expected="a text encoder of padded tokens, which says its embedding size")
        self.width, self.padding = int(width), int(tokenizer.pad_token_id)
        context = int(self.model.max_seq_length or tokenizer.model_max_length)
        self._tokenizer, self._context = tokenizer, min(context, longest or context)
        # No gradient ever reaches the pooler of BERT and its kin: sentence-transformers pools by itself.
        if (pooler := getattr(self.model[0].auto_model, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return the texts' tokens: (n, context)."""
        settings = {"padding": "max_length", "truncation": True, "max_length": self._context, "return_tensors": "pt"}
        tokens: Tensor = self._tokenizer(texts, **settings)["input_ids"]
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self._outputs(tokens)["sentence_embedding"]
        return features

    @property
    def word_vectors(self) -> Tensor:
        """(tokens, W), the input vector of each token of the vocabulary."""
        table: Tensor = self.model[0].auto_model.get_input_embeddings().weight.detach()
        return table

    def states(self, tokens: Tensor) -> Tensor:
        """Return the states of (n, L) tokens, before they are pooled: (n, L, W)."""
        found: Tensor = self._outputs(tokens)["token_embeddings"]
        return found

    def _outputs(self, tokens: Tensor) -> Any:
        return self.model({"input_ids": tokens, "attention_mask": (tokens != self.padding).long()})

    def set_grad_checkpointing(self) -> None:
        """Compute the layers' activations again in the backward pass."""
        self.model[0].auto_model.activation_checkpointing_enable()


def projection(width: int, dim: int) -> nn.Module:
    """Return what takes an encoder's (n, W) into the common space: (n, D)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))


def two_encoders(name: str) -> TwoEncoders:
    """Return the student of `<image encoder>+<text encoder>[@<D>]`, such as `efficientnet-lite0+minilm@256`.

    Raises:
        StudentError: the name is of another form.
        WeightsError: an encoder cannot be had.
    """
    return TwoEncoders(*named_encoders("towers", name))


def named_encoders(family: str, name: str) -> tuple[str, str, int]:
    """Return the image encoder, the text encoder and D that `<image encoder>+<text encoder>[@<D>]` names.

    Encoders may be called as the teachers of the same libraries are, `timm:…` and `sentence-transformers:…`.

    Raises:
        StudentError: the name is of another form.
    """
    parts = re.fullmatch(r"([^+]+)\+(.+?)(?:@([1-9]\d*))?", name)
    if parts is None or re.search(r"@[^/]*$", parts[2]):  # a folder's path may have one
        example = f"{family}:efficientnet-lite0+minilm@256"
        expected = f"{family}:<image encoder>+<text encoder>[@<dimensions>], such as {example}"
        raise StudentError(found=f"{family}:{name}", expected=expected)
    image, text, dim = parts.groups()
    text = re.sub(r"^(words:)?sentence-transformers:", r"\1", text)
    return image.removeprefix("timm:"), text, int(dim or DIM)


def augmented(settings: Mapping[str, Any]) -> Transform:
    """Return the training transform of an encoder with timm's data settings."""
    size = settings["input_size"][1:]
    how = v2.InterpolationMode(settings["interpolation"] if settings["interpolation"] != "random" else "bicubic")
    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=_CROP, interpolation=how, antialias=True),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings["mean"], settings["std"]),
        ]
    )
    return transform
