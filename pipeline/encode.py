"""Feature extraction: a teacher over the rows of the pending shards, written part by part.

Images are decoded by worker processes beside the model, texts are ordered by length within a window of shards so
that batches hold little padding; batches cross shard borders. A part is written the moment its last row arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.teachers import Teacher
from pipeline.teachers.base import MIN_COSINE
from stores import Shard, tables
from stores.console import console
from stores.features import PartOrigin, write_part
from stores.images import Images, decode_rgb
from stores.layout import Layout
from stores.parameters import Extract

TEXT_WINDOW: Final = 65_536
"""About how many captions are ordered by length together."""


@dataclass
class _OpenPart:
    features: NDArray[np.float16]
    valid: NDArray[np.bool_]
    missing: int


class PartWriter:
    """Collects encoded rows, in any order, and writes each shard's part when it is full."""

    def __init__(self, teacher: Teacher, shards: Sequence[Shard], layout: Layout) -> None:
        self._teacher = teacher
        self._shards = sorted(shards, key=lambda shard: shard.first_row(teacher.modality))
        self._firsts = np.array([shard.first_row(teacher.modality) for shard in self._shards])
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

    def _put(self, rows: NDArray[np.int64], features: NDArray[np.float16], valid: NDArray[np.bool_]) -> None:
        self.invalid += int((~valid).sum())
        owners = np.searchsorted(self._firsts, rows, side="right") - 1
        for owner in np.unique(owners):
            here = owners == owner
            count = self._shards[owner].rows(self._teacher.modality)
            part = self._open.setdefault(
                int(owner),
                _OpenPart(np.zeros((count, self._teacher.dim), np.float16), np.zeros(count, bool), count),
            )
            places = rows[here] - self._firsts[owner]
            part.features[places], part.valid[places] = features[here], valid[here]
            part.missing -= len(places)
            if not part.missing:
                self._write(int(owner))

    def _write(self, number: int) -> None:
        part, shard = self._open.pop(number), self._shards[number]
        origin = PartOrigin(teacher_fingerprint=self._teacher.fingerprint, shard_sha256=shard.sha256)
        write_part(self._layout.features(self._teacher.slug, shard.name), part.features, part.valid, origin)


def extract_features(
    teacher: Teacher, shards: Sequence[Shard], layout: Layout, settings: Extract, progress: Progress
) -> None:
    """Encode all rows of `shards` with `teacher` and write their parts."""
    writer = PartWriter(teacher, shards, layout)
    total = sum(shard.rows(teacher.modality) for shard in shards)
    task = progress.add_task(f"{teacher.modality}s · {teacher.slug}", total=total, note=teacher.precision)
    batches = (
        _image_batches(teacher, shards, layout, settings)
        if teacher.modality == "image"
        else (_text_batches(teacher, shards, layout, settings))
    )
    checked = False
    for rows, batch, failed in batches:
        if len(failed):
            writer.add_invalid(failed)
        if len(rows):
            if not checked:
                _say_if_imprecise(teacher, batch)
                checked = True
            writer.add(rows, teacher.encode(batch))
        _advance(progress, task, len(rows) + len(failed), writer.invalid)


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
    """Preprocessed images by position among `rows`; None where one cannot be decoded."""

    def __init__(self, images: Images, rows: NDArray[np.int64], teacher: Teacher) -> None:
        self._images, self._rows, self._teacher = images, rows, teacher

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        row = int(self._rows[position])
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


def _image_batches(teacher: Teacher, shards: Sequence[Shard], layout: Layout, settings: Extract) -> Iterator[Batch]:
    images = Images(layout, tables.read_table(layout.samples, tables.SAMPLES))
    dataset = _ImageRows(images, _rows(shards, teacher), teacher)
    yield from DataLoader(
        dataset,
        batch_size=settings.image_batch,
        num_workers=settings.workers,
        collate_fn=dataset.collate,
        pin_memory=teacher.device.type == "cuda",
        prefetch_factor=4 if settings.workers else None,
    )


def _text_batches(teacher: Teacher, shards: Sequence[Shard], layout: Layout, settings: Extract) -> Iterator[Batch]:
    texts = tables.read_table(layout.captions, tables.CAPTIONS)["text"]
    none = np.empty(0, dtype=np.int64)
    rows = _rows(shards, teacher)
    for start in range(0, len(rows), TEXT_WINDOW):
        window = rows[start : start + TEXT_WINDOW]
        captions = texts.take(window).to_pylist()
        order = np.argsort([-len(caption) for caption in captions], kind="stable")
        for first in range(0, len(order), settings.text_batch):
            places = order[first : first + settings.text_batch]
            batch = teacher.collate([teacher.preprocess(captions[place]) for place in places])
            yield window[places], batch, none


def _rows(shards: Sequence[Shard], teacher: Teacher) -> NDArray[np.int64]:
    runs = [shard.first_row(teacher.modality) + np.arange(shard.rows(teacher.modality)) for shard in shards]
    return np.concatenate(runs).astype(np.int64)
