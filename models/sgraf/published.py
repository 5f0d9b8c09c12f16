"""Files of SGR and SAF: the authors' `model_best.pth.tar`, a list of three state dicts, and our student.safetensors.

The authors' holds {epoch, model, best_rsum, opt, Eiters}, of which `opt` is an `argparse.Namespace`; it is read with
`weights_only`, with that one class allowed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.loading import M, made_with, shortened
from stores.atomic import atomic_path
from stores.errors import WeightsError

PREFIXES: Final = ("img_enc", "txt_enc", "sim_enc")
"""What the three state dicts are in one, in their order."""
OPTIONS: Final = {
    "data_path": "",
    "data_name": "f30k_precomp",
    "vocab_path": "",
    "batch_size": 128,
    "workers": 10,
    "num_epochs": 40,
    "lr_update": 30,
    "learning_rate": 2e-4,
    "log_step": 10,
    "val_step": 1000,
    "grad_clip": 2.0,
    "margin": 0.2,
    "max_violation": True,
    "num_layers": 1,
    "bi_gru": True,
    "sgr_step": 3,
    "no_imgnorm": False,
    "no_txtnorm": False,
}
"""What the authors' code reads of a file's `opt` beside the sizes, as its command has it by default."""
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
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the authors' file says beside the weights: epoch, best_rsum, Eiters, and of `opt` the values by name."""

    @property
    def data(self) -> str:
        """What its training data were called, which its vocabulary is named by."""
        return str(self.metadata.get("opt", {}).get("data_name", ""))


def read_published(path: Path, kind: str) -> Published:
    """Read a file of SGR or SAF, whichever `kind` says.

    Raises:
        WeightsError: the file is absent, holds other things than weights, or those of another model.
    """
    if not path.is_file():
        raise WeightsError("no such file", path=path, expected=f"a checkpoint of {kind}")
    try:
        state, metadata = _state(path)
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
    steps = metadata.get("opt", {}).get("sgr_step", OPTIONS["sgr_step"])
    if kind == "SGR" and steps != OPTIONS["sgr_step"]:
        advice = "Their default is what this student is; a model of other steps has other tensors."
        raise WeightsError("steps of SGR", path=path, found=steps, expected=OPTIONS["sgr_step"], advice=advice)
    held = next((name for name, key in _KINDS.items() if key in shapes), "neither SGR nor SAF")
    if held != kind:
        raise WeightsError(path=path, found=held, expected=kind, advice=f"Name it as sgraf:{held}/{path}.")
    return Published(state=state, sizes=sizes, metadata=metadata)


def write_published(student: nn.Module, path: Path) -> None:
    """Write a student of this family as the authors' code loads it; each tensor is bitwise the student's.

    What the file said beside the weights, of which the student was loaded, is kept; else it is what the authors'
    command has by default: before their `evalrank`, set `opt.vocab_path` and `opt.data_name`, by which it finds the
    vocabulary.
    """
    state = student.state_dict()
    parts = [
        {name.removeprefix(f"{prefix}."): tensor.cpu() for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in PREFIXES
    ]
    kind = next(name for name, key in _KINDS.items() if key in state)
    sizes = {
        "module_name": kind,
        "vocab_size": len(parts[1]["embed.weight"]),
        "word_dim": parts[1]["embed.weight"].shape[1],
        "img_dim": parts[0]["fc.weight"].shape[1],
        "embed_size": len(parts[0]["fc.weight"]),
        "sim_dim": parts[2]["sim_eval_w.weight"].shape[1],
    }
    metadata: Mapping[str, Any] = getattr(student, "metadata", {})
    held: dict[str, Any] = {"epoch": 0, "model": parts, "best_rsum": 0.0, "opt": {}, "Eiters": 0, **metadata}
    held["opt"] = argparse.Namespace(**{**OPTIONS, **held["opt"], **sizes})
    with atomic_path(path) as temporary:
        torch.save(held, temporary)


def made_of(published: Published, make: Callable[[], M], path: Path) -> M:
    """Return the student that `make` makes, with every tensor of a file.

    Raises:
        WeightsError: one is missing, too many, or of another shape than its sizes say.
    """
    try:
        return made_with(published.state, make)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(shortened(error), path=path, expected=f"the sizes {asdict(published.sizes)}") from None


def _state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors under the names of one model, and what it says beside them."""
    if path.suffix == ".safetensors":
        return load_file(path), {}
    with torch.serialization.safe_globals([argparse.Namespace]):
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    parts = zip(PREFIXES, held["model"], strict=True)
    state = {f"{prefix}.{name}": tensor for prefix, part in parts for name, tensor in part.items()}
    metadata = {name: value for name, value in held.items() if name not in ("model", "opt")}
    options = held.get("opt") or {}
    return state, metadata | {"opt": dict(options) if isinstance(options, Mapping) else vars(options)}
