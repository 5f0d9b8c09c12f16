"""What the loading of models from elsewhere shares: weights files, their digest, and the words of errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from stores.errors import WeightsError


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the names among `known` that come nearest to `name`, for an error's message."""
    return ", ".join(get_close_matches(name, list(known), n=5, cutoff=0.4)) or "nothing alike"


def shortened(error: Exception, limit: int = 400) -> str:
    """Return an error's text, cut to what a person reads."""
    text = str(error)
    return text if len(text) <= limit else text[:limit] + " …"
