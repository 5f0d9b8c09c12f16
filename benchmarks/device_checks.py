"""What a device must compute as the processor does, within a tolerance: each check gives the largest difference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from scipy import sparse
from torch import Tensor, nn

from benchmarks.extraction import random_unicom
from benchmarks.index import made_store
from benchmarks.large_batch import Pairs
from benchmarks.measure import accelerator_of
from models.aligned import AlignedModel
from models.encoded import Encoded, map_tensors
from models.inputs import Padded
from pipeline.indices import ensure_index
from stores.hardware import ComputePrecision
from stores.index import Index
from stores.parameters import Extract, Loss
from train.evaluation.exact_cosine import full_precision
from train.evaluation.rankings import ranks_both_ways
from train.fit.grad_cache import cached_backward
from train.fit.optimisation import Learner
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective

FP32_APART: Final = 2e-5
"""On a processor other numbers of threads, batches, kernels and float64 are at most 1.5e-6 apart; TF32, simulated, in
the first convolution alone 2.9e-4, in all products 7.6e-4."""
BF16_APART: Final = 2e-2
"""On a processor 6.5e-3; features of two pictures are 1.1 apart."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The largest relative difference between a device and the processor, and the most that it may be."""

    name: str
    difference: float
    tolerance: float
    kept: bool

    @classmethod
    def within(cls, name: str, difference: float, tolerance: float) -> Check:
        """Return a check that is kept where the difference is a number, and small enough."""
        return cls(name=name, difference=difference, tolerance=tolerance, kept=difference <= tolerance)


def features_fp32(device: torch.device) -> Check:
    """Compare features by a Unicom B/32 in fp32, without TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), full_precision(device):
        return Check.within("features in fp32", _features_apart(device, "fp32"), FP32_APART)


def features_bf16(device: torch.device) -> Check:
    """Compare features in bf16, as extraction is timed, with the processor's in fp32."""
    return Check.within("features in bf16, against fp32", _features_apart(device, "bf16"), BF16_APART)


def _features_apart(device: torch.device, precision: ComputePrecision) -> float:
    """Return the largest distance of two features, relative to their length."""
    with tempfile.TemporaryDirectory() as folder:
        spec = random_unicom(Path(folder))
        batch = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        ours, theirs = (
            spec.load(where, kind).encode(batch).cpu().double()
            for where, kind in ((str(device), precision), ("cpu", "fp32"))
        )
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def tiled_objective(device: torch.device) -> Check:
    """Compare value and gradients of the CUSA objective in tiles."""
    ours, theirs = (Pairs(where, 1024).step(256**2) for where in (device, torch.device("cpu")))
    return Check.within("objective in tiles: value and gradients", _largest(ours, theirs), 1e-4)


def cached_gradients(device: torch.device) -> Check:
    """Compare gradients of a batch in micro-batches with those of the whole batch on the processor."""
    accelerator = accelerator_of(device)
    ours = _gradients(device, 20, accelerator)
    theirs = _gradients(torch.device("cpu"), 64, accelerator)
    return Check.within("GradCache: gradients", _largest(ours, theirs), 1e-4)


def rankings(device: torch.device) -> Check:
    """Count the ranks that differ: they are exact everywhere."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 64, generator=generator)
    texts = images.repeat_interleave(5, 0) + 3 * torch.randn(2500, 64, generator=generator)
    own = sparse.csr_array(np.kron(np.eye(500, dtype=bool), np.ones((1, 5), dtype=bool)))
    ours, theirs = (ranks_both_ways(images.to(w), texts.to(w), own) for w in (device, torch.device("cpu")))
    differ = max(float(np.mean(one != other)) for one, other in zip(ours, theirs, strict=True))
    return Check.within("rankings: share of other ranks", differ, 0.0)


def index(device: torch.device) -> Check:
    """Let the device train and fill an approximate index, and see how much of what is there it does not find.

    What faiss built on the CPU, where a GPU was asked for, is not kept: it says nothing of the GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        features, shards, parts, layout = made_store(Path(folder), rows=20_000, parts=2)
        settings = Extract(index="IVF64,Flat", exact_rows=1, device=str(device))
        ensure_index(features, "train", shards, parts, layout, settings)
        queries = features.gather(np.arange(0, 20_000, 100)).astype(np.float32)
        built_on = json.loads(layout.index_card("t", "train").read_bytes())["built_on"]
        found = Index.read(layout.index("t", "train")).search(queries, 10)[1]
        everything = features.gather(np.arange(20_000)).astype(np.float32)
        nearest = np.argsort(-(queries @ everything.T), axis=1, kind="stable")[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, nearest, strict=True)])
    check = Check.within(f"index built on {built_on}: 1 − recall of the ten nearest", float(1 - recall), 0.05)
    return replace(check, kept=check.kept and built_on == ("cuda" if device.type == "cuda" else "cpu"))


CHECKS: Final[tuple[Callable[[torch.device], Check], ...]] = (
    *(features_fp32, features_bf16, tiled_objective, cached_gradients, rankings, index),
)


class _Towers(nn.Module):
    """Two layers for either modality: large enough to have gradients, small enough for the processor."""

    embed_dim = 32
    train_transform = eval_transform = tokenizer = staticmethod(lambda given: given)

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Linear(64, 32))
        self.text = nn.Sequential(nn.Embedding(100, 64), nn.Flatten(), nn.Linear(640, 32))

    def encode_image(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.image(images)
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.text(tokens)
        return embedding


def _gradients(device: torch.device, micro_batch: int, accelerator: Accelerator) -> list[Tensor]:
    torch.manual_seed(0)
    learner = Learner(AlignedModel(_Towers()), make_objective(Loss())).train()
    tokens = torch.randint(100, (64, 10))
    inputs: dict[str, Any] = {"image": torch.rand(64, 3, 8, 8), "text": Padded(tokens, tokens >= 0)}
    teachers = {"image": torch.randn(64, 12), "text": torch.randn(64, 9)}
    learner.to(device)
    inputs, teachers = map_tensors(lambda tensor: tensor.to(device), (inputs, teachers))
    rows = torch.arange(64, device=device)

    def loss(encoded: dict[str, Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
        items = Instances(encoded, rows, rows, teachers)
        return compare(learner.objective, items, items, learner.model.scorer)

    cached_backward(learner, inputs, micro_batch, loss, lambda number: None, accelerator)
    return [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference of two tensors, relative to the norm of the second; NaN where there is one."""
    pairs = ((one.detach().cpu(), other.detach().cpu()) for one, other in zip(ours, theirs, strict=True))
    return float(np.max([float((one - other).norm() / other.norm().clamp(min=1e-12)) for one, other in pairs]))
