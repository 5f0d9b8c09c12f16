"""The parts of a split's items (tokens, regions) while it is measured: in memory, or on disk in float16.

Shapes: n items of L parts of width W.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from models.aligned import AlignedModel
from models.scoring import Cosine
from stores.errors import CusaError
from stores.parameters import Evaluation


class PartsPolicy(NamedTuple):
    """What is kept of items' parts."""

    wanted: bool = True
    folder: Path | None = None
    """Where those lie that do not fit; None: all are kept in memory, as they are."""
    limit: float = math.inf
    """How many bytes of a modality may be in memory."""


ALL_PARTS: Final = PartsPolicy()


def parts_policy(model: AlignedModel, reranks: bool, settings: Evaluation, folder: Path) -> PartsPolicy:
    """Return what the measuring of a model needs, which `reranks` or not: nothing, where cosines alone are ranked."""
    return PartsPolicy(reranks or not isinstance(model.scorer, Cosine), folder, settings.parts_gib * 2**30)


class PartsOfSplit:
    """The parts of n items, as every process gets them batch by batch, each an equal run of the rows."""

    def __init__(self, accelerator: Accelerator, count: int, policy: PartsPolicy) -> None:
        self._accelerator, self._count, self._policy = accelerator, count, policy
        self._share = -(-count // accelerator.num_processes)
        self._chunks: list[tuple[Tensor, Tensor | None]] = []

    def add(self, parts: Tensor, mask: Tensor | None) -> None:
        """Take the parts of a batch, of every process's as many: (b, L, W), with a mask (b, L) or none."""
        if self._accelerator.num_processes > 1:
            parts, mask = self._gathered(parts, mask)
        kept = self._place(parts.shape, parts.dtype)
        largest = float(parts.abs().amax()) if kept.dtype != parts.dtype and parts.numel() else 0.0
        if not math.isfinite(largest):
            raise CusaError("The items' parts are not finite; the model is broken.")
        if largest > torch.finfo(torch.float16).max:
            found, expected = f"{largest:.3g}", f"at most {torch.finfo(torch.float16).max:g}, as on disk"
            raise CusaError("a part's number", found=found, expected=expected, advice="Raise eval.parts_gib.")
        parts = kept.copy_(parts)
        self._chunks.append((parts, None if mask is None else mask.cpu()))

    def whole(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the parts of all items in the order of their rows, padded to the longest, and their mask."""
        if not self._chunks:
            return None, None
        longest = max(parts.shape[1] for parts, _ in self._chunks)
        shape = torch.Size((self._count, longest, self._chunks[0][0].shape[2]))
        whole = self._place(shape, self._chunks[0][0].dtype)
        masked = any(mask is not None or parts.shape[1] < longest for parts, mask in self._chunks)
        flags = torch.zeros(shape[:2], dtype=torch.bool) if masked else None
        done = 0
        while self._chunks:
            parts, mask = self._chunks.pop(0)
            each = len(parts) // self._accelerator.num_processes
            for process in range(self._accelerator.num_processes):
                first = process * self._share + done
                some = slice(process * each, process * each + max(0, min(each, self._count - first)))
                rows, length = slice(first, first + some.stop - some.start), parts.shape[1]
                whole[rows, :length] = parts[some]
                if flags is not None:
                    flags[rows, :length] = True if mask is None else mask[some]
            done += each
        return whole, flags

    def _place(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return room for parts: in memory, or in a file that goes as soon as nobody reads it."""
        all_bytes = self._count * math.prod(shape[1:]) * dtype.itemsize
        if self._policy.folder is None or all_bytes <= self._policy.limit:
            return torch.zeros(shape, dtype=dtype)
        self._policy.folder.mkdir(parents=True, exist_ok=True)
        kind = np.dtype(np.float16) if dtype.is_floating_point else np.dtype(str(dtype).removeprefix("torch."))
        with tempfile.TemporaryFile(dir=self._policy.folder) as file:
            return torch.from_numpy(np.memmap(file, kind, "w+", shape=tuple(shape)))

    def _gathered(self, parts: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return those of all processes, padded to their longest."""
        accelerator = self._accelerator
        length = torch.tensor([parts.shape[1]], device=parts.device)
        missing = int(accelerator.gather(length).max()) - parts.shape[1]
        mask = torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device) if mask is None else mask
        gathered: Tensor = accelerator.gather(functional.pad(parts, (0, 0, 0, missing)))
        flags: Tensor = accelerator.gather(functional.pad(mask, (0, missing)))
        return gathered, flags
