"""Files of SGR and SAF: the authors' `model_best.pth.tar`, a list of three state dicts, and our student.safetensors.

The authors' holds {epoch, model, best_rsum, opt, Eiters}, of which `opt` is an `argparse.Namespace`; it is read with
`weights_only`, with that one class allowed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.loading import shortened
from stores.atomic import atomic_path
from stores.errors import WeightsError

PREFIXES: Final = ("img_enc", "txt_enc", "sim_enc")
"""What the three state dicts are in one, in their order."""
_KINDS: Final = {"SGR": "sim_enc.SGR_module.0.sim_graph_w.weight", "SAF": "sim_enc.SAF_module.attn_sim_w.weight"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a model; the defaults are the authors'."""

    words: int
    """Of the vocabulary."""
    regions: int = 36
    region: int = 2048
    """Numbers of a region."""
    word: int = 300
    dim: int = 1024
    similarity: int = 256


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file's weights, under the names of one model."""

    state: Mapping[str, Tensor]
    sizes: Sizes
    data: str
    """What its training data were called, which its vocabulary is named by."""


def read_published(path: Path, kind: str) -> Published:
    """Read a file of SGR or SAF, whichever `kind` says.

    Raises:
        WeightsError: the file is absent, holds other things than weights, or those of another model.
    """
    if not path.is_file():
        raise WeightsError("no such file", path=path, expected=f"a checkpoint of {kind}")
    try:
        state, data = _state(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        sizes = Sizes(
            words=shapes["txt_enc.embed.weight"][0],
            word=shapes["txt_enc.embed.weight"][1],
            dim=shapes["img_enc.fc.weight"][0],
            region=shapes["img_enc.fc.weight"][1],
            regions=shapes["sim_enc.v_global_w.embedding_local.1.weight"][0],
            similarity=shapes["sim_enc.sim_eval_w.weight"][1],
        )
    except Exception as error:  # torch and safetensors have no common base for what a foreign file makes them raise
        expected = "model_best.pth.tar of SGRAF's authors, of weights alone, or student.safetensors of sgraf"
        raise WeightsError(shortened(error), path=path, expected=expected) from None
    held = next((name for name, key in _KINDS.items() if key in shapes), "neither SGR nor SAF")
    if held != kind:
        raise WeightsError(path=path, found=held, expected=kind, advice=f"Name it as sgraf:{held}/{path}.")
    return Published(state=state, sizes=sizes, data=data)


def write_published(student: nn.Module, path: Path) -> None:
    """Write a student of this family as the authors' code loads it; each tensor is bitwise the student's."""
    state = student.state_dict()
    parts = [
        {name.removeprefix(f"{prefix}."): tensor.cpu() for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in PREFIXES
    ]
    kind = next(name for name, key in _KINDS.items() if key in state)
    options = argparse.Namespace(
        module_name=kind,
        vocab_size=len(parts[1]["embed.weight"]),
        word_dim=parts[1]["embed.weight"].shape[1],
        img_dim=parts[0]["fc.weight"].shape[1],
        embed_size=len(parts[0]["fc.weight"]),
        sim_dim=parts[2]["sim_eval_w.weight"].shape[1],
        num_layers=1,
        bi_gru=True,
        sgr_step=3,
        no_imgnorm=False,
        no_txtnorm=False,
    )
    with atomic_path(path) as temporary:
        torch.save({"epoch": 0, "model": parts, "best_rsum": 0.0, "opt": options, "Eiters": 0}, temporary)


def load_strictly(student: nn.Module, published: Published, path: Path) -> None:
    """Load every tensor of a file.

    Raises:
        WeightsError: one is missing, too many, or of another shape.
    """
    try:
        student.load_state_dict(dict(published.state), strict=True)
    except RuntimeError as error:
        raise WeightsError(shortened(error), path=path, expected=f"the sizes {asdict(published.sizes)}") from None


def _state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return a file's tensors under the names of one model, and what its data were called."""
    if path.suffix == ".safetensors":
        return load_file(path), ""
    with torch.serialization.safe_globals([argparse.Namespace]):
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    parts = zip(PREFIXES, held["model"], strict=True)
    state = {f"{prefix}.{name}": tensor for prefix, part in parts for name, tensor in part.items()}
    return state, str(getattr(held.get("opt"), "data_name", ""))
