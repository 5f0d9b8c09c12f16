"""Texts that attend to an image: BERT's layers with cross-attention, given what depends on the image alone.

transformers would project the image's tokens again for every text, and take the image once for each. Here keys and
values are made once an image, and all texts of one image attend to the same ones.

Shapes: n images of L tokens, P texts of K tokens of width W, h heads of d numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

from models.packaged_weights import packaged_file
from stores.errors import StudentError

KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""By layer, of n images: (n, h, L, d) each."""
_MASKED: Final = torch.finfo(torch.float16).min
"""Added to the scores of masked tokens: no weight is left of them, in any precision."""
_WORDS: Final = 30


def keys_and_values(layers: nn.ModuleList, tokens: Tensor) -> KeysAndValues:
    """Return what `layers` (of BERT or BLIP, with cross-attention) make of n images' (n, L, V) tokens alone."""
    every: list[Any] = list(layers)
    projections = [layer.crossattention.self for layer in every]
    return [
        (_heads(attention.key(tokens), attention), _heads(attention.value(tokens), attention))
        for attention in projections
    ]


def fused(layers: nn.ModuleList, hidden: Tensor, mask: Tensor, image: KeysAndValues, checkpointed: bool) -> Tensor:
    """Return texts, (P, K, W) with (P, K) `mask`, after layers in which they attend to an image each: (P, K, W).

    `image` is of P images, or of one that all texts attend to. `checkpointed` computes activations again in the
    backward pass.
    """
    bias = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, _MASKED)[:, None, None, :]
    for layer, given in zip(layers, image, strict=True):
        if checkpointed and torch.is_grad_enabled():
            hidden = checkpoint(partial(_fuse, layer), hidden, bias, *given, use_reentrant=False)
        else:
            hidden = _fuse(layer, hidden, bias, *given)
    return hidden


def _fuse(layer: Any, hidden: Tensor, bias: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    hidden = layer.attention(hidden, bias)[0]
    across: Any = layer.crossattention.self
    queries = _heads(across.query(hidden), across)
    if len(keys) == 1:  # the texts' tokens one after another, as if of one text: none sees another here
        queries = queries.transpose(0, 1).flatten(1, 2)[None]
    dropout = across.dropout.p if across.training else 0.0
    found = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    found = found.transpose(1, 2).reshape(*hidden.shape[:2], -1)
    result: Tensor = layer.feed_forward_chunk(layer.crossattention.output(found, hidden))
    return result


def _heads(projected: Tensor, attention: Any) -> Tensor:
    """(n, L, h · d) to (n, h, L, d)."""
    return projected.view(*projected.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)


def uncased_tokenizer(signs: str, length: int, vocabulary: int) -> Callable[[list[str]], Tensor]:
    """Return BERT's uncased tokenizer, which comes with MiniLM: texts to (n, length) integers, padded with zeros.

    Args:
        signs: characters that are taken for spaces; of a text the first 30 words are read, in lower case.
        length: how many tokens, with [CLS] and [SEP]; a longer text is cut.
        vocabulary: how many tokens the student knows.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(packaged_file("minilm").parent, local_files_only=True)
    return partial(_tokenized, tokenizer, re.compile(f"[{re.escape(signs)}]"), length, vocabulary)


def _tokenized(tokenizer: Any, signs: re.Pattern[str], length: int, vocabulary: int, texts: list[str]) -> Tensor:
    if vocabulary < len(tokenizer):
        expected = f"at least {len(tokenizer):,}, BERT's uncased ones"
        raise StudentError("The student's word embeddings", found=vocabulary, expected=expected)
    cleaned = [" ".join(signs.sub(" ", text.lower()).split()[:_WORDS]) for text in texts]
    settings = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens: Tensor = tokenizer(cleaned, **settings)["input_ids"]
    return tokens
