"""Embedding a whole split, shared among the processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.aligned import AlignedModel
from stores import Store
from train.data.batches import ImageRows
from train.data.workers import leave_signals_to_the_parent

Pairs = Generator[tuple[Tensor, Tensor], None, None]
"""Batches of cross-modal and uni-modal embeddings."""


class SplitEmbeddings(NamedTuple):
    """All embeddings of a split, on the CPU in float32: images (S, D), captions (C, D)."""

    image: Tensor
    uni_image: Tensor
    text: Tensor
    uni_text: Tensor


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode while the block runs; a student's own similarity is measured in it as well."""
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
) -> SplitEmbeddings:
    """Embed every image and caption of a split, in the order of their rows.

    Each process embeds an equal share; every process gets all. `pause` is called after every batch, equally often in
    every process, and may raise.
    """
    with measuring(model), accelerator.autocast():
        images = _all(_images(model, store, split, accelerator, batch_size, workers), pause)
        texts = _all(_texts(model, store, split, accelerator, batch_size), pause)
    sizes = len(store.rows(split, "image")), len(store.rows(split, "text"))
    (image, uni_image), (text, uni_text) = (
        [accelerator.gather(part)[:size].cpu() for part in parts]
        for parts, size in zip((images, texts), sizes, strict=True)
    )
    return SplitEmbeddings(image, uni_image, text, uni_text)


def _all(batches: Pairs, pause: Callable[[], None]) -> list[Tensor]:
    kept = []
    with closing(batches):  # else a loader's workers would outlive a stop
        for batch in batches:
            kept.append([embedding.float() for embedding in batch])
            pause()
    return [torch.cat(part) for part in zip(*kept, strict=True)]


def _images(
    model: AlignedModel, store: Store, split: str, accelerator: Accelerator, batch_size: int, workers: int
) -> Pairs:
    rows = ImageRows(store, _share(store.rows(split, "image"), accelerator), model.student.eval_transform)
    loader = DataLoader(
        rows,
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_parent,
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in loader:
        yield model.embed_images(batch.to(accelerator.device, non_blocking=True))


def _texts(model: AlignedModel, store: Store, split: str, accelerator: Accelerator, batch_size: int) -> Pairs:
    rows = _share(store.rows(split, "text"), accelerator)
    for start in range(0, len(rows), batch_size):
        texts = store.captions["text"].take(rows[start : start + batch_size]).to_pylist()
        yield model.embed_texts(model.student.tokenizer(texts).to(accelerator.device))


def _share(rows: NDArray[np.int64], accelerator: Accelerator) -> NDArray[np.int64]:
    """Return this process's equally long run of rows; past the end the last row is repeated, and cut off later."""
    size = -(-len(rows) // accelerator.num_processes)
    first = accelerator.process_index * size
    return rows[np.minimum(np.arange(first, first + size), len(rows) - 1)]
