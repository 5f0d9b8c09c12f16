"""Checkpoints: one safetensors file each, so that it appears whole or not at all; its header holds the JSON record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stores.atomic import atomic_path
from stores.errors import CheckpointError
from stores.json_objects import parsed_object

CHECKPOINT_FORMAT: Final = 4
_RECORD: Final = "cusa"
_FROZEN: Final = "frozen"
_SOFTWARE: Final = {"software": "cusa"}
"""In the header of every file of tensors that we write."""


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    record: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    left_out: Collection[str] = (),
) -> None:
    """Write the weights and buffers of modules by name, the optimiser's state if given, and `record`, atomically.

    Parameters that do not learn, which may be most of a student and were loaded from elsewhere, may be `left_out` by
    part and name; `record` then has their digests (`frozen_digests`) under "frozen".
    """
    tensors = {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }
    for name in left_out:
        del tensors[name]
    if optimizer is not None:
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    header = {_RECORD: json.dumps({"format": CHECKPOINT_FORMAT, **record})}
    write_tensors(path, tensors, header)


def frozen_parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the parameters of modules that do not learn, by part and name."""
    return {
        f"{part}.{name}": parameter.detach()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }


def frozen_digests(parts: Iterable[str], frozen: Mapping[str, Tensor]) -> dict[str, str]:
    """Return by part what changes with its parameters that do not learn; `frozen` are those of all parts."""
    digests = {part: hashlib.sha256() for part in parts}
    for name, parameter in sorted(frozen.items()):
        digest = digests[name.partition(".")[0]]
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors of any device and `header` to a safetensors file, atomically.

    Raises:
        CheckpointError: the disk is full, or refuses otherwise.
    """
    copied = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(copied, temporary, {**header, **_SOFTWARE})
        except SafetensorError as error:  # which is no OSError, even of a full disk
            advice = "What is finished is kept; mend this and run the same command again."
            raise CheckpointError(f"could not be written ({error})", path=path, advice=advice) from None


def is_our_tensors(path: Path) -> bool:
    """Tell whether a file of tensors is one that we wrote, by its header."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return _RECORD in header or _SOFTWARE.items() <= header.items()


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint without reading its tensors.

    Raises:
        CheckpointError: the file is absent or not a checkpoint of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if _RECORD not in header:
            advice = (
                "Of a run take its folder or best.safetensors; student.safetensors is the student alone, without its "
                "heads: open-clip:<model>/<file>."
            )
            raise CheckpointError(path=path, expected="a checkpoint of cusa-train", advice=advice)
        record = parsed_object(header[_RECORD])
    except FileNotFoundError:
        raise CheckpointError("no such file", path=path, expected="a checkpoint of cusa-train") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{error}", path=path, expected="a checkpoint of cusa-train") from None
    if (found := record.get("format")) != CHECKPOINT_FORMAT:
        advice = "Train again with this version."
        raise CheckpointError(path=path, where="format", found=found, expected=CHECKPOINT_FORMAT, advice=advice)
    for name in ("parameters", _FROZEN):
        if not isinstance(held := record.get(name, {}), dict):
            raise CheckpointError(path=path, where=name, found=held, expected="an object")
    return record


def tensor_names(path: Path) -> list[str]:
    """Return the names of a checkpoint's tensors, each with its module's in front; the file is one of ours."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load modules by name from a checkpoint, and the optimiser if given; return its record.

    Raises:
        CheckpointError: the file is damaged, or its weights are another model's.
    """
    record = read_record(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
        recorded = record.get(_FROZEN)
        # What does not learn for want of a term that reaches it is in the file all the same.
        frozen = frozen_parameters(modules) if recorded is not None else {}
        left_out = {name: parameter for name, parameter in frozen.items() if name not in tensors}
        if recorded is not None and any(
            recorded.get(part) != digest for part, digest in frozen_digests(modules, left_out).items()
        ):
            advice = "Take the weights that it began with, or train anew."
            raise CheckpointError("the parameters that do not learn are others now", path=path, advice=advice)
        for part, module in modules.items():
            module.load_state_dict(_of(part, {**left_out, **tensors}), strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"does not fit this model ({str(error)[:400]})", path=path) from None
    if optimizer is not None:
        _load_optimizer(optimizer, tensors)
    return record


def read_module(path: Path, part: str) -> dict[str, Tensor]:
    """Return the weights and buffers of one module of a checkpoint by name; of parameters left out there are none.

    Raises:
        CheckpointError: the file is absent, damaged or not a checkpoint of ours.
    """
    read_record(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{part}.")]  # noqa: SIM118 — not a mapping
            return _of(part, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{error}", path=path, expected="a checkpoint of cusa-train") from None


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _of("optimizer", tensors).items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused step takes for granted that a parameter and its moments lie alike in memory (channels last or not).
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if value.shape == parameter.shape:
                kept[key] = torch.empty_like(parameter).copy_(value)
