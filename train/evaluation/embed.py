"""Encoding a whole split, shared among the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from models.aligned import AlignedModel
from models.batch_loader import item_batches
from models.encoded import Encoded, concatenated, map_tensors
from stores import Store
from train.data.mixture import Mixture
from train.evaluation.kept_parts import ALL_PARTS, PartsOfSplit, PartsPolicy

SplitEncoded = dict[str, Encoded]
"""All items of a split by modality, in the order of their rows, on the CPU in float32."""


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode while the block runs; a student's own scorer is measured in it as well."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def embed_split(
    model: AlignedModel,
    store: Store,
    split: str,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    pause: Callable[[], None] = lambda: None,
    policy: PartsPolicy = ALL_PARTS,
) -> SplitEncoded:
    """Encode every item of a split, in the order of their rows.

    Each process encodes an equal share; every process gets all. `pause` is called after every batch, equally often in
    every process, and may raise. `policy` says what is kept of parts, and where.
    """
    inputs = model.interface.inputs
    items = Mixture([store], split, inputs)
    found: SplitEncoded = {}
    with measuring(model), accelerator.autocast():
        for modality, given in inputs.items():
            numbers = items.numbers(given.level)
            rows = process_share(numbers.first + np.arange(len(numbers)), accelerator)
            kept, parts = [], PartsOfSplit(accelerator, len(numbers), policy)
            for batch in item_batches(items, given, rows, batch_size, workers, accelerator.device):
                encoded = map_tensors(
                    lambda t: t.float() if t.is_floating_point() else t, model.encode(modality, batch)
                )
                vectors = encoded._replace(parts=None, mask=None)
                # Several processes gather on their devices; one has no need to hold a whole split there.
                kept.append(vectors if accelerator.num_processes > 1 else map_tensors(Tensor.cpu, vectors))
                if policy.wanted and encoded.parts is not None:
                    parts.add(encoded.parts, encoded.mask)
                pause()
            whole = concatenated(kept)
            if accelerator.num_processes > 1:
                whole = map_tensors(lambda tensor: accelerator.gather(tensor).cpu(), whole)
            tokens, mask = parts.whole()
            found[modality] = whole.take(slice(len(numbers)))._replace(parts=tokens, mask=mask)
    return found


def process_share(rows: NDArray[np.int64], accelerator: Accelerator) -> NDArray[np.int64]:
    """Return this process's equally long run of rows; past the end the last row is repeated, and cut off later."""
    size = -(-len(rows) // accelerator.num_processes)
    first = accelerator.process_index * size
    return rows[np.minimum(np.arange(first, first + size), len(rows) - 1)]
