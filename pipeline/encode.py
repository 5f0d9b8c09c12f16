"""Feature extraction: a teacher over the rows of the pending shards, written part by part.

Images are decoded by worker processes beside the model, in batches that cross shard borders; the texts of a shard are
ordered by length, so that batches hold little padding. A part is written the moment its last row arrives.

Rounding may depend on what else is in a batch. So the batches are a function of the whole store, never of what is
still missing: a resumed or repaired store is byte-identical to an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.teachers import Teacher
from pipeline.teachers.base import MIN_COSINE
from stores import Shard, tables
from stores.commands import leave_interrupts_to_the_parent
from stores.console import console
from stores.features import PartOrigin, write_part
from stores.images import Images, decode_rgb
from stores.layout import Layout
from stores.parameters import Extract


@dataclass
class _OpenPart:
    features: NDArray[np.float16]
    valid: NDArray[np.bool_]
    missing: int


class PartWriter:
    """Collects encoded rows, in any order, and writes each pending shard's part when it is full."""

    def __init__(self, teacher: Teacher, pending: Sequence[Shard], layout: Layout) -> None:
        self._teacher = teacher
        self._shards = sorted(pending, key=lambda shard: shard.first_row(teacher.modality))
        self._firsts = np.array([shard.first_row(teacher.modality) for shard in self._shards])
        self._counts = np.array([shard.rows(teacher.modality) for shard in self._shards])
        self._open: dict[int, _OpenPart] = {}
        self._layout = layout
        self.invalid = 0

    def add(self, rows: NDArray[np.int64], features: Tensor) -> None:
        """Take the (B, dim) features of the global `rows` (B,), normalising them; non-finite ones become invalid."""
        normalised = torch.nn.functional.normalize(features, dim=1).to(torch.float16).cpu().numpy()
        valid = np.isfinite(normalised).all(axis=1) & normalised.any(axis=1)
        self._put(rows, np.where(valid[:, None], normalised, np.float16(0)), valid)

    def add_invalid(self, rows: NDArray[np.int64]) -> None:
        """Take rows that the teacher could not encode."""
        self._put(rows, np.zeros((len(rows), self._teacher.dim), np.float16), np.zeros(len(rows), bool))

    def wanted(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which rows belong to a pending shard."""
        owners = np.searchsorted(self._firsts, rows, side="right") - 1
        kept: NDArray[np.bool_] = (owners >= 0) & (rows < self._firsts[owners] + self._counts[owners])
        return kept

    def _put(self, rows: NDArray[np.int64], features: NDArray[np.float16], valid: NDArray[np.bool_]) -> None:
        kept = self.wanted(rows)
        rows, features, valid = rows[kept], features[kept], valid[kept]
        self.invalid += int((~valid).sum())
        owners = np.searchsorted(self._firsts, rows, side="right") - 1
        for owner in np.unique(owners):
            here = owners == owner
            part = self._open.get(owner) or self._open.setdefault(owner, self._new_part(owner))
            places = rows[here] - self._firsts[owner]
            part.features[places], part.valid[places] = features[here], valid[here]
            part.missing -= len(places)
            if not part.missing:
                self._write(owner)

    def _new_part(self, number: int) -> _OpenPart:
        count = int(self._counts[number])
        return _OpenPart(np.zeros((count, self._teacher.dim), np.float16), np.zeros(count, bool), count)

    def _write(self, number: int) -> None:
        part, shard = self._open.pop(number), self._shards[number]
        origin = PartOrigin(teacher_fingerprint=self._teacher.fingerprint, shard_sha256=shard.sha256)
        write_part(self._layout.features(self._teacher.slug, shard.name), part.features, part.valid, origin)


def extract_features(
    teacher: Teacher,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    layout: Layout,
    settings: Extract,
    progress: Progress,
) -> None:
    """Encode the rows of the `pending` ones among all `shards` with `teacher` and write their parts."""
    writer = PartWriter(teacher, pending, layout)
    total = sum(shard.rows(teacher.modality) for shard in pending)
    task = progress.add_task(f"{teacher.modality}s · {teacher.slug}", total=total, note=teacher.precision)
    if teacher.modality == "image":
        batches = _image_batches(teacher, shards, writer, layout, settings)
    else:
        batches = _text_batches(teacher, pending, layout, settings)
    checked = False
    for rows, batch, failed in batches:
        if len(failed):
            writer.add_invalid(failed)
        if len(rows):
            if not checked:
                _say_if_imprecise(teacher, batch)
                checked = True
            writer.add(rows, teacher.encode(batch))
        _advance(progress, task, int(writer.wanted(np.concatenate([rows, failed])).sum()), writer.invalid)


def _advance(progress: Progress, task: TaskID, done: int, invalid: int) -> None:
    progress.advance(task, done)
    if invalid:
        progress.update(task, note=f"{invalid} failed")


def _say_if_imprecise(teacher: Teacher, batch: Any) -> None:
    cosine = teacher.precision_cosine(batch)
    if cosine < MIN_COSINE:
        console.print(
            f"[yellow]Warning:[/] {teacher.spec} in {teacher.precision} strays from fp32: smallest cosine "
            f"{cosine:.5f}, expected at least {MIN_COSINE}. Set extract.precision: fp32."
        )


Batch = tuple[NDArray[np.int64], Any, NDArray[np.int64]]
"""Rows, their preprocessed inputs, and the rows that failed."""


class _ImageRows(Dataset[tuple[int, Any]]):
    """Preprocessed images by row; None where one cannot be decoded."""

    def __init__(self, images: Images, teacher: Teacher) -> None:
        self._images, self._teacher = images, teacher

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        try:
            return row, self._teacher.preprocess(decode_rgb(self._images[row]))
        except OSError:
            return row, None

    def collate(self, items: list[tuple[int, Any]]) -> Batch:
        """Make a batch of what could be decoded."""
        good = [(row, item) for row, item in items if item is not None]
        failed = np.array([row for row, item in items if item is None], dtype=np.int64)
        batch = self._teacher.collate([item for _, item in good]) if good else None
        return np.array([row for row, _ in good], dtype=np.int64), batch, failed


def _image_batches(
    teacher: Teacher, shards: Sequence[Shard], writer: PartWriter, layout: Layout, settings: Extract
) -> Iterator[Batch]:
    dataset = _ImageRows(Images(layout, tables.read_table(layout.samples, tables.SAMPLES)), teacher)
    rows = np.concatenate([shard.first_sample + np.arange(shard.samples) for shard in shards])
    batches = [rows[start : start + settings.image_batch] for start in range(0, len(rows), settings.image_batch)]
    yield from DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches if writer.wanted(batch).any()],
        num_workers=settings.workers,
        collate_fn=dataset.collate,
        worker_init_fn=leave_interrupts_to_the_parent,
        pin_memory=teacher.device.type == "cuda",
        prefetch_factor=4 if settings.workers else None,
    )


def _text_batches(teacher: Teacher, pending: Sequence[Shard], layout: Layout, settings: Extract) -> Iterator[Batch]:
    texts = tables.read_table(layout.captions, tables.CAPTIONS)["text"]
    for shard in pending:
        captions = texts.slice(shard.first_caption, shard.captions).to_pylist()
        order = np.argsort([-len(caption) for caption in captions], kind="stable")
        for first in range(0, len(order), settings.text_batch):
            places = order[first : first + settings.text_batch]
            batch = teacher.collate([teacher.preprocess(captions[place]) for place in places])
            yield shard.first_caption + places, batch, np.empty(0, dtype=np.int64)
