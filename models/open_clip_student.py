"""Students that are open_clip's: any of its models, and the embedded small one."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from torch import Tensor, nn

import models.small_conv  # noqa: F401 — registers the embedded student's tower with timm
from models.export import exported
from models.loading import nearest
from models.preprocessing import Transform
from models.students import Halves, Parts
from stores.console import console
from stores.errors import StudentError

SMALL_CLIP: Final = Path(__file__).with_name("small-clip.json")
"""The embedded student's configuration, in open_clip's format; its image tower is `models.small_conv`."""


_SHORT: Final = 32


class OpenClipStudent(nn.Module):
    """Any open_clip model, with open_clip's own transforms."""

    def __init__(self, name: str, pretrained: str | None) -> None:
        super().__init__()
        self.name = name
        self.model, self.train_transform, self.eval_transform, self.tokenizer = _create(name, pretrained)
        self.embed_dim = int(open_clip.get_model_config(name)["embed_dim"])
        # No gradient would ever reach these: our own temperatures stand in for CLIP's scale and bias, and nothing is
        # generated with CoCa's decoder.
        for unused in (getattr(self.model, part, None) for part in ("logit_scale", "logit_bias", "text_decoder")):
            if isinstance(unused, nn.Module | nn.Parameter):
                unused.requires_grad_(False)

    def encode_image(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_image(images)
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        cut = self.padding is not None and tokens.shape[1] < self.model.context_length
        embedding: Tensor = encode_words(self.model, tokens)[1] if cut else self.model.encode_text(tokens)
        return embedding

    @property
    def padding(self) -> int | None:
        """The token that fills a text's end, where the tower reads no further than the text.

        That is CLIP's causal tower, whose last token stands for the text. A short context gains too little.
        """
        model = self.model
        causal = type(model) is open_clip.CLIP and model.text_pool_type in ("argmax", "eos")
        return 0 if causal and model.context_length > _SHORT else None

    @property
    def towers(self) -> dict[str, Parts]:
        """Each tower's modules and parameters, projections included.

        The text tower is all that is not the image tower: in open_clip's CLIP it lies flat in the model. open_clip's
        own lock_image_tower and lock_text_tower are no use here: they leave a timm tower's and a Hugging Face tower's
        projection learning, and CoCa has none.
        """
        text = [child for name, child in self.model.named_children() if name != "visual"]
        return {"image": [self.model.visual], "text": [*text, *self.model.parameters(recurse=False)]}

    @property
    def halves(self) -> dict[str, Halves]:
        """By modality, its tower, which freezing takes whole, and nothing after it."""
        return {"image": (self.encode_image, _unchanged), "text": (self.encode_text, _unchanged)}

    def set_grad_checkpointing(self) -> None:
        """Compute activations again in the backward pass.

        Raises:
            StudentError: a tower that learns cannot do so; open_clip itself would go on without a word.
        """
        with warnings.catch_warnings():
            # open_clip calls transformers by a name that is to go.
            warnings.simplefilter("ignore", FutureWarning)
            # It logs that it goes on without, which we refuse below.
            logging.disable(logging.WARNING)
            try:
                self.model.set_grad_checkpointing()
            except (ValueError, AttributeError) as error:
                raise StudentError(f"{self.name} cannot do gradient checkpointing: {error}") from None
            finally:
                logging.disable(logging.NOTSET)
        for tower, parts in self.towers.items():
            if _learns(parts) and not _checkpoints(parts):
                raise StudentError(
                    f"The {tower} tower of {self.name} cannot do gradient checkpointing. Leave "
                    f"student.gradient_checkpointing out, or freeze that tower: student.freeze=[{tower}]."
                )


def _unchanged(embedding: Tensor) -> Tensor:
    return embedding


def encode_words(model: open_clip.CLIP, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the text tower's states of (M, length) tokens, (M, length, W), and the texts' embeddings: (M, D).

    The length may be less than the model's context.
    """
    length, dtype = tokens.shape[1], model.transformer.get_cast_dtype()
    words = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    words = model.ln_final(model.transformer(words, attn_mask=model.attn_mask[:length, :length]))
    is_end = tokens == (tokens.amax(dim=1, keepdim=True) if model.text_pool_type == "argmax" else model.text_eos_id)
    pooled: Tensor = words[torch.arange(len(words), device=words.device), is_end.int().argmax(dim=1)]
    projection = model.text_projection
    if isinstance(projection, nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return words, pooled


@exported.register
def _exported(student: OpenClipStudent, tau: float | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the keys of open_clip's own model, and in the header the name and the preprocessing."""
    state = student.model.state_dict()
    if tau is not None:
        state["logit_scale"] = torch.full_like(state["logit_scale"], -math.log(tau))
    about = {"model_name": student.name, "preprocess_cfg": open_clip.get_model_preprocess_cfg(student.model)}
    return state, {"open_clip": json.dumps(about)}


def _learns(parts: Parts) -> bool:
    return any(
        parameter.requires_grad
        for part in parts
        for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
    )


def _checkpoints(parts: Parts) -> bool:
    """Tell whether a part's flag is up: the first is that of open_clip and timm, the second that of transformers."""
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return any(getattr(m, "grad_checkpointing", False) or getattr(m, "gradient_checkpointing", False) for m in modules)


def _create(name: str, pretrained: str | None) -> tuple[Any, Transform, Transform, Callable[[list[str]], Tensor]]:
    open_clip.add_model_config(SMALL_CLIP)
    if name not in open_clip.list_models():
        raise StudentError(f"open_clip knows no model {name!r}. Nearest: {nearest(name, open_clip.list_models())}.")
    if (
        pretrained
        and Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")
        and not Path(pretrained).is_file()
    ):
        raise StudentError("no such file", path=pretrained, where=f"open-clip:{name}", expected="its weights")
    _warn_of_activation(name, pretrained)
    # open_clip logs what it raises as well, and warns of random weights, which are asked for by naming none.
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")
            # First the tokenizer: where the hub is out of reach, it fails at once.
            tokenizer = open_clip.get_tokenizer(name)
            return *open_clip.create_model_and_transforms(name, pretrained=pretrained, weights_only=True), tokenizer
    except Exception as error:  # torch, safetensors, the hub and open_clip have no common base for what goes wrong
        raise StudentError(_failure(name, pretrained, error)) from None
    finally:
        logging.disable(logging.NOTSET)


def _failure(name: str, pretrained: str | None, error: Exception) -> str:
    text = open_clip.get_model_config(name)["text_cfg"]
    hub = ", ".join(sorted({text[key] for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)}))
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    weights = f" with the weights {pretrained!r}" if pretrained else ""
    return (
        f"The student {name}{weights} could not be loaded: {str(error)[:400]} "
        + (f"Its text tower or tokenizer is {hub} of the Hugging Face hub, or of its cache here. " if hub else "")
        + f"The weights are a file or one of open_clip's tags ({tags})."
    )


def _warn_of_activation(name: str, pretrained: str | None) -> None:
    """Say it where weights learned with another GELU than the model has: they load, but start out worse."""
    weights = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick = bool(open_clip.get_model_config(name).get("quick_gelu"))
    if not weights or bool(weights.get("quick_gelu")) == quick:
        return
    other = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
    console.print(
        f"The weights {pretrained} were trained with {'GELU' if quick else 'QuickGELU'}, and {name} has the "
        f"other. "
        + (f"The model that fits them is open-clip:{other}/{pretrained}." if other in open_clip.list_models() else ""),
        style="yellow",
    )
