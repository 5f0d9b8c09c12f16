"""Unicom image teachers (An et al., ICLR 2023): a ViT without class token whose flattened patches pass a linear head.

The blocks are timm's; names and shapes are those of the published checkpoints, which load strictly.
Shapes: B batch, P patches, W width, D output size.
"""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.transforms import v2

from models.loading import shortened, weights_digest, weights_file
from models.teachers.image_teacher import ImageTeacher
from stores.errors import TeacherError
from stores.hardware import ComputePrecision

RELEASES: Final = "https://github.com/deepglint/unicom/releases/download"
TOKENS: Final = "@tokens"
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class UnicomModel:
    """The shape of one published model, and where its checkpoint is."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    dim: int
    tag: str
    file: str
    sha256: str


MODELS: Final = {
    "ViT-B/32": UnicomModel(
        image_size=224, patch_size=32, width=768, depth=12, heads=12, dim=512, tag="b32", file="FP16-ViT-B-32.pt",
        sha256="f9d5696a9b58dbbbefee2d31615ca59084f2895a0fdd2ca4c235e0f9b2793f7a",
    ),
    "ViT-B/16": UnicomModel(
        image_size=224, patch_size=16, width=768, depth=12, heads=12, dim=768, tag="b16", file="FP16-ViT-B-16.pt",
        sha256="c04f324f7c3b4435667236ec6c0eca1cd62f9d64fbfc2d06f8e8e60e6497edef",
    ),
    "ViT-L/14": UnicomModel(
        image_size=224, patch_size=14, width=1024, depth=24, heads=16, dim=768, tag="l14", file="FP16-ViT-L-14.pt",
        sha256="ff3ab62ff782876460099e6e0ee17b73a7c01109de2fffd595f16f4129404bbd",
    ),
    "ViT-L/14@336px": UnicomModel(
        image_size=336, patch_size=14, width=1024, depth=24, heads=16, dim=768, tag="l14_336px",
        file="FP16-ViT-L-14-336px.pt",
        sha256="3916ab5aed3b522fc90345be8b4457fe5dad60801ad2af5a6871c0c096e8d7ea",
    ),
}  # fmt: skip


class UnicomViT(nn.Module):
    """Unicom's vision transformer: (B, 3, S, S) images to (B, D) features."""

    def __init__(self, model: UnicomModel) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(model.image_size, model.patch_size, embed_dim=model.width)
        patches = self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, model.width))
        self.blocks = nn.ModuleList(
            Block(model.width, model.heads, mlp_ratio=4.0, qkv_bias=False, act_layer=nn.ReLU6, norm_layer=_norm)
            for _ in range(model.depth)
        )
        self.norm = _norm(model.width)
        self.feature = nn.Sequential(
            nn.Linear(model.width * patches, model.width, bias=False),
            nn.BatchNorm1d(model.width, eps=2e-5),
            nn.Linear(model.width, model.dim, bias=False),
            nn.BatchNorm1d(model.dim, eps=2e-5),
        )

    def tokens(self, images: Tensor) -> Tensor:
        """Return the normalised patch tokens, flattened position by position: (B, P·W)."""
        tokens = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        normalised: Tensor = self.norm(tokens)
        return normalised.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.feature(self.tokens(images))
        return features


class UnicomTeacher(ImageTeacher):
    """A Unicom model with a published or local checkpoint.

    Its features are the head's, as published, or with `@tokens` after the name the flattened patch tokens before it
    (37,632 numbers of ViT-B/32), which by its size is what the CUSA authors' released file holds.
    """

    def __init__(self, name: str, weights: str | None, device: torch.device, precision: ComputePrecision) -> None:
        spec = f"unicom:{name}"
        name = name.removesuffix(TOKENS)
        if name not in MODELS:
            raise TeacherError(found=f"unicom:{name}", expected=", ".join(f"unicom:{known}" for known in MODELS))
        model = MODELS[name]
        network = UnicomViT(model)
        path = weights_file(weights, f"unicom:{name}") if weights else _download(name, model)
        _load_strictly(network, path, name)
        self.network = network.eval().to(device)
        transform = v2.Compose(
            [
                v2.Resize(model.image_size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(model.image_size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        weighed = weights_digest(network)
        self._features = network.tokens if spec.endswith(TOKENS) else network
        dim = network.pos_embed[0].numel() if spec.endswith(TOKENS) else model.dim
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, weights=weighed, transform=transform)

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self._features(batch.to(self.device, non_blocking=True))
        return features


def _norm(width: int, **_: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5)


def _download(name: str, model: UnicomModel) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"unicom-{model.file}"
    if not path.exists():
        url = f"{RELEASES}/{model.tag}/{model.file}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=model.sha256)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            advice = "Download the file elsewhere and name it: teachers.image_weights (--image-weights)."
            raise TeacherError(f"could not be downloaded ({error})", path=url, advice=advice) from None
    return path


def _load_strictly(network: UnicomViT, path: Path, name: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except Exception as error:
        # torch.load has no common base for what a foreign or broken file makes it raise.
        raise TeacherError(shortened(error), path=path, expected=f"a checkpoint of unicom:{name}") from None
