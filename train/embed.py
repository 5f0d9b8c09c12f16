"""Embedding a whole split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from stores import Store
from train.data import ImageRows
from train.model import AlignedModel


class SplitEmbeddings(NamedTuple):
    """All embeddings of a split, on the CPU in float32: images (S, D), captions (C, D)."""

    image: Tensor
    uni_image: Tensor
    text: Tensor
    uni_text: Tensor


@torch.inference_mode()
def embed_split(
    model: AlignedModel, store: Store, split: str, accelerator: Accelerator, batch_size: int, workers: int
) -> SplitEmbeddings:
    """Embed every image and caption of a split, in the order of their rows."""
    was_training = model.training
    model.eval()
    student, device = model.student, accelerator.device
    rows = ImageRows(store, store.rows(split, "image"), student.eval_transform)
    images, texts = [], []
    with accelerator.autocast():
        for batch in DataLoader(rows, batch_size=batch_size, num_workers=workers):
            images.append([e.float().cpu() for e in model.embed_images(batch.to(device))])
        captions = store.captions["text"].take(store.rows(split, "text")).to_pylist()
        for start in range(0, len(captions), batch_size):
            tokens = student.tokenizer(captions[start : start + batch_size])
            texts.append([e.float().cpu() for e in model.embed_texts(tokens.to(device))])
    model.train(was_training)
    image, uni_image = (torch.cat(part) for part in zip(*images, strict=True))
    text, uni_text = (torch.cat(part) for part in zip(*texts, strict=True))
    return SplitEmbeddings(image, uni_image, text, uni_text)
