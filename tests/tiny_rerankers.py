"""Rerankers of a few layers with random weights, an X2-VLM and a BLIP, and one that multiplies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval

from models.encoded import Encoded
from models.export import exported
from models.x2vlm import X2VLM, Size, TowerSize
from train.evaluation.reranking import RerankedSimilarities, reranked
from train.evaluation.similarities import CosineSimilarities

SMALL = Size(
    pixels=32,
    patch=8,
    image=TowerSize(width=24, layers=2, heads=3, hidden=40),
    text=TowerSize(width=32, layers=2, heads=4, hidden=48),
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


IMAGES, TEXTS, K = 9, 23, 6


class Product(nn.Module):
    """Matches by what no cosine tells: the products of first parts, weighted by length. Counts what it is asked."""

    def __init__(self, killed_at: int | None = None) -> None:
        super().__init__()
        self.prepared: list[float] = []
        self.pairs = 0
        self.lengths: list[int] = []
        self._killed_at = killed_at

    def prepare_match(self, images: Encoded) -> tuple[Tensor]:
        self.prepared.append(float(images.parts[0, 0, 0]))
        if len(self.prepared) == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return (images.parts[:, 0],)

    def match(self, images: tuple[Tensor], texts: Encoded) -> Tensor:
        assert texts.mask.all()
        self.pairs += texts.size
        self.lengths.append(texts.parts.shape[1])
        scores = (images[0] * texts.parts.sum(dim=1)).sum(dim=1)
        return torch.stack([torch.zeros_like(scores), scores], dim=1)


def items() -> tuple[Encoded, Encoded]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(count, 4, generator=generator) for count in (IMAGES, TEXTS))
    lengths = torch.randint(1, 4, (TEXTS,), generator=generator)
    words = torch.randn(TEXTS, 3, 4, generator=generator)
    mask = torch.arange(3) < lengths[:, None]
    return Encoded(images, parts=torch.randn(IMAGES, 2, 4, generator=generator)), Encoded(texts, parts=words, mask=mask)


def scored(matcher: nn.Module, folder: Path, combine: str = "replace", k: int = K) -> RerankedSimilarities:
    images, texts = items()
    first = CosineSimilarities(images.vector, texts.vector)
    return reranked(first, matcher, (images, texts), k, combine, 4, Accelerator(cpu=True), folder)
