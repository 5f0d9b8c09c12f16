"""What the loading of models from elsewhere shares: weights files, their digest, fixed parts, the words of errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from stores.errors import WeightsError

M = TypeVar("M", bound=nn.Module)


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 over a module's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_file(path: str, spec: str) -> Path:
    """Return the path of a local weights file.

    Raises:
        WeightsError: there is no such file.
    """
    if not Path(path).is_file():
        raise WeightsError(f"The weights {path} of {spec} do not exist. Name a file.")
    return Path(path)


def made_with(state: Mapping[str, Tensor], make: Callable[[], M]) -> M:
    """Return the module that `make` makes, with the weights of a file that says how large it is.

    It takes no memory before it is known that the file's tensors are its own and hold what they claim: a view without
    strides claims any size, and two narrow tensors a matrix that the file has not.

    Raises:
        ValueError: a tensor is missing, too many, of another shape, or does not hold its numbers.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    others = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if others:
        first = others[0]
        shapes = f"{first} with {found.get(first, 'nothing')}, expected {expected.get(first, 'nothing')}"
        raise ValueError(f"{len(others)} tensors do not fit, the first is {shapes}")
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} does not hold the {tuple(tensor.shape)} numbers that it claims")
    module = make()
    module.load_state_dict(dict(state), strict=True)
    return module


def keep_in_eval(module: nn.Module) -> None:
    """Put a part of a student into evaluation mode for good, whatever mode the student comes into."""
    module.eval()
    # Every train() of the student or of what holds it comes by here.
    module.train = partial(_unchanged, module)  # type: ignore[method-assign]


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the names among `known` that come nearest to `name`, for an error's message."""
    return ", ".join(get_close_matches(name, list(known), n=5, cutoff=0.4)) or "nothing alike"


def shortened(error: Exception, limit: int = 400) -> str:
    """Return an error's text, cut to what a person reads."""
    text = str(error)
    return text if len(text) <= limit else text[:limit] + " …"
