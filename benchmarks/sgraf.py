"""SGR and SAF scoring images with captions, against the straightforward loop: one caption after another.

The loop follows the equations of arXiv 2101.01368 as they stand: each caption's global vector, its attention over every
image's regions, three products a step of SGR. Sizes are the paper's; memory is measured in a process of its own, for a
few captions and for many.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Result, in_turn
from models.encoded import Encoded
from models.sgraf import SgrafStudent
from models.sgraf.encoders import at_length_one
from models.sgraf.published import Sizes
from stores.hardware import resolve_device

IMAGES, CAPTIONS, ROUNDS = 64, 24, 3
FEW, MANY = 8, 64
LENGTHS = (10, 11, 11, 12, 12, 12, 13, 13, 14, 15, 17, 22)
"""Tokens of captions, as COCO's are spread; they recur."""
BOUNDS = {"SGR": 2.0, "SAF": 1.6}
MEMORY_BOUND, NEAR = 1.1, 1e-6


def benchmark() -> list[Result]:
    """Measure both heads on the machine's own device, and memory on the host."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = (pool.apply(_held, (captions,)) for captions in (FEW, MANY))
    memory = Result(
        name=f"memory of SGR scoring {MANY} captions with {IMAGES} images, against {FEW} captions",
        ours=many / 2**20,
        yardstick=few / 2**20,
        unit="MiB",
        ratio=many / few,
        bound=f"≤ {MEMORY_BOUND}",
        kept=many / few <= MEMORY_BOUND,
    )
    return [*(_time(kind) for kind in BOUNDS), memory]


def _time(kind: str) -> Result:
    model, images, captions = made(kind, resolve_device("auto"), IMAGES, CAPTIONS)
    with torch.inference_mode():
        ours = lambda: scored(model, images, captions)  # noqa: E731
        loop = lambda: _loop(model, images, captions)  # noqa: E731
        seconds, yardstick, ratio = in_turn(ours, loop, ROUNDS)
        apart = float((ours() - loop()).abs().max())
    pairs = IMAGES * CAPTIONS
    return Result(
        name=f"{kind} scoring {IMAGES} images with {CAPTIONS} captions, fp32, against the loop over captions, from "
        f"which scores are {apart:.0e} apart",
        ours=pairs / seconds,
        yardstick=pairs / yardstick,
        unit="pairs/s",
        ratio=1 / ratio,
        bound=f"≥ {BOUNDS[kind]} in speed, ≤ {NEAR:.0e} apart",
        kept=1 / ratio >= BOUNDS[kind] and apart <= NEAR,
    )


def made(kind: str, device: torch.device, count: int, captions: int) -> tuple[SgrafStudent, Encoded, Encoded]:
    """Return a model of the paper's sizes with random weights, local vectors of images, and of captions."""
    torch.manual_seed(0)
    model = SgrafStudent(kind, Sizes(words=100), "regions", None).eval().to(device)
    regions = at_length_one(torch.randn(count, 36, 1024, device=device))
    lengths = torch.tensor([LENGTHS[row % len(LENGTHS)] for row in range(captions)], device=device)
    mask = torch.arange(max(LENGTHS), device=device) < lengths[:, None]
    words = at_length_one(torch.randn(*mask.shape, 1024, device=device)) * mask[..., None]
    with torch.inference_mode():
        images = Encoded(model.sim_enc.v_global_w(regions), parts=regions)
    return model, images, Encoded(words[:, 0], parts=words, mask=mask)


def scored(model: SgrafStudent, images: Encoded, captions: Encoded) -> Tensor:
    """Score images with captions whose global vectors are yet to be made: (N, M)."""
    vectors = model.sim_enc.t_global_w(captions.parts, captions.mask)
    return model.sim_enc.matrix(images, captions._replace(vector=vectors))


def _loop(model: SgrafStudent, images: Encoded, captions: Encoded) -> Tensor:
    part: Any = model.sim_enc
    columns = []
    for words, mask in zip(captions.parts, captions.mask, strict=True):
        own = words[mask][None]
        vector = part.t_global_w(own)
        expanded = own.expand(images.size, -1, -1)
        similarity = functional.leaky_relu(images.parts @ expanded.mT, 0.1)
        similarity = _unit(similarity).mT.contiguous()
        contexts = _unit(functional.softmax(9 * similarity, dim=-1) @ images.parts)
        local = _unit(part.sim_tranloc_w((contexts - expanded) ** 2))
        overall = _unit(part.sim_tranglo_w((images.vector - vector) ** 2))
        nodes = torch.cat([overall[:, None], local], dim=1)
        vectors = _reasoned(part, nodes) if model.kind == "SGR" else _filtered(part, nodes)
        columns.append(torch.sigmoid(part.sim_eval_w(vectors)))
    return torch.cat(columns, dim=1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-8)


def _reasoned(part: Any, nodes: Tensor) -> Tensor:
    for step in part.SGR_module:
        edges = functional.softmax(step.graph_query_w(nodes) @ step.graph_key_w(nodes).mT, dim=-1)
        nodes = step.sim_graph_w(edges @ nodes).relu()
    return nodes[:, 0]


def _filtered(part: Any, nodes: Tensor) -> Tensor:
    gates = torch.sigmoid(part.SAF_module.bn(part.SAF_module.attn_sim_w(nodes).mT)).mT
    gates = gates / (gates.sum(dim=1, keepdim=True) + 1e-8)
    return _unit((gates * nodes).sum(dim=1))


@torch.inference_mode()
def _held(captions: int) -> int:
    """Return the most bytes that a process held while it scored, without what it held before."""
    model, images, texts = made("SGR", torch.device("cpu"), IMAGES, captions)
    Path("/proc/self/clear_refs").write_text("5")
    scored(model, images, texts)
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
