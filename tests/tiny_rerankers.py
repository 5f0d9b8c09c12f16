"""Rerankers of a few layers with random weights: an X2-VLM, a BLIP."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import BlipConfig, BlipForImageTextRetrieval

from models.export import exported
from models.x2vlm import X2VLM, Size, Tower

SMALL = Size(
    pixels=32,
    patch=8,
    image=Tower(width=24, layers=2, heads=3, hidden=40),
    text=Tower(width=32, layers=2, heads=4, hidden=48),
    fusion_layers=2,
    dim=16,
    tokens=20,
)


def spread(model: nn.Module) -> nn.Module:
    """Give all weights values that tell: at their start, many are zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "temp":
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.15)
    return model.eval()


def tiny_x2vlm() -> nn.Module:
    return spread(X2VLM(SMALL))


def x2vlm_file(path: Path, student: nn.Module) -> Path:
    """Write a file as X2-VLM's authors do, with what they keep and nobody needs."""
    state, _ = exported(student, None)
    extra = {
        "text_encoder.embeddings.position_ids": torch.arange(512)[None],
        "vision_encoder.blocks.0.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.long),
    }
    torch.save({"model": {**state, **extra}, "config": {"text": {"num_attention_heads": 4}, "max_tokens": 20}}, path)
    return path


def tiny_blip() -> BlipForImageTextRetrieval:
    text = {
        "vocab_size": 30_524,
        "hidden_size": 32,
        "encoder_hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    return spread(
        BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16))
    )
