"""From a store and parameters to batches: the stream, its loader, and the teachers' features joined by row.

Shapes: N batch, Di and Dt the teachers' feature sizes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.student import Student, Transform
from stores import Store
from stores.images import decode_rgb
from stores.parameters import Train
from train.data.augment import generators_restored, seed_for
from train.data.mixture import MixedFeatures, Mixture, opened
from train.data.passes import Passes, Unusable
from train.data.shares import MixtureShares
from train.data.stream import BatchRows, PairStream
from train.data.workers import leave_signals_to_the_parent

_COPIED_ROWS: Final = 16_384
"""How many rows of a table go to the device at once: the host holds no more of it."""


class Batch(NamedTuple):
    """Pairs ready for the student; the teachers' features come along only where the host gathers them."""

    images: Tensor
    tokens: Tensor
    samples: Tensor
    """(N,) sample rows, each with its store's offset: unique over all mixed stores, on end within the split."""
    captions: Tensor
    """(N,) caption rows, likewise."""
    groups: Tensor
    """(N,) samples' rows; of samples that show one picture, the same."""
    teacher_image: Tensor | None = None
    """(N, Di) float16."""
    teacher_text: Tensor | None = None
    """(N, Dt) float16."""

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously from pinned memory."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._replace(**{name: move(tensor) for name, tensor in self._asdict().items() if tensor is not None})


class TensorCache:
    """Tensors by row, made when first asked for and kept up to so many bytes; the least recently used go first."""

    def __init__(self, make: Callable[[int], Tensor], room: int) -> None:
        self._make, self._room = make, room
        self._tensors: OrderedDict[int, Tensor] = OrderedDict()

    def __getitem__(self, row: int) -> Tensor:
        if row in self._tensors:
            self._tensors.move_to_end(row)
            return self._tensors[row]
        tensor = self._tensors[row] = self._make(row)
        self._room -= tensor.nbytes
        while self._room < 0 and self._tensors:
            self._room += self._tensors.popitem(last=False)[1].nbytes
        return tensor


class PairBatches(Dataset[Batch]):
    """Makes the batch of a draw, in any process.

    Without augmentation an image is the same every time: such images are kept in memory, up to `cache_gib` in each
    loading process. With it, what a sample looks like follows from the seed, the epoch and its place there.
    """

    def __init__(self, mixture: Mixture, student: Student, settings: Train, gathers: bool) -> None:
        """`gathers` says whether the teachers' features come along, from the host."""
        self._mixture, self._gathers = mixture, gathers
        self._augments, self._seed = settings.augment, settings.seed
        self._transform = student.train_transform if settings.augment else student.eval_transform
        self._tokenizer = student.tokenizer
        room = int(settings.cache_gib * 2**30)
        self._pictures = TensorCache(self._picture, room)
        self._tokens = TensorCache(self._tokenised, room // 8)

    def __getitem__(self, draw: BatchRows) -> Batch:
        pictures = self._augmented(draw) if self._augments else [self._pictures[int(n)] for n in draw.samples]
        features = zip(self._mixture.features if self._gathers else (), (draw.samples, draw.captions), strict=False)
        return Batch(
            torch.stack(pictures),
            torch.stack([self._tokens[int(number)] for number in draw.captions]),
            torch.from_numpy(draw.samples),
            torch.from_numpy(draw.captions),
            torch.from_numpy(self._mixture.repeats.groups(draw.samples)),
            *(torch.from_numpy(teacher.gather(numbers)) for teacher, numbers in features),
        )

    def _augmented(self, draw: BatchRows) -> list[Tensor]:
        pictures = []
        with generators_restored():
            for place, number in enumerate(draw.samples, draw.first_place):
                seed_for(self._seed, draw.epoch, place)
                pictures.append(self._picture(int(number)))
        return pictures

    def _picture(self, number: int) -> Tensor:
        return self._transform(decode_rgb(self._mixture.image(number)))

    def _tokenised(self, number: int) -> Tensor:
        return self._tokenizer([self._mixture.text(number)])[0]


class ImageRows(Dataset[Tensor]):
    """The transformed images of some rows, for measuring."""

    def __init__(self, store: Store, rows: NDArray[np.int64], transform: Transform) -> None:
        self._images, self._rows, self._transform = store.images, rows, transform

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Tensor:
        return self._transform(decode_rgb(self._images[int(self._rows[position])]))


class TrainingData:
    """What a training sees: built once, in every process alike.

    If both teachers' tables fit the budget they lie on the device and the join is one `index_select` each; else the
    host gathers the rows (in the loader's workers) and they travel with the batch. Both give the same numbers.
    """

    def __init__(
        self,
        store: Store,
        settings: Train,
        slugs: tuple[str, str],
        student: Student,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Open the split "train" of the store and of those mixed in.

        Raises:
            TrainingError: the batch cannot be made, or the stores do not go together.
            StoreError: one of them is absent or damaged, or lacks the split or a teacher.
        """
        stores = opened(store, settings.mix_in, slugs)
        self._settings, self._processes = settings, processes
        mixture = Mixture(stores, "train", slugs)
        self._passes = [_passes(store, number, mixture, settings, slugs) for number, store in enumerate(stores)]
        self._shares = MixtureShares(tuple(settings.mix_in.values()))
        self.stream = PairStream(
            self._passes, self._shares, batch_size=settings.batch_size, rank=rank, processes=processes
        )
        size = sum(len(features.numbers) * features.dim * 2 for features in mixture.features)
        self.on_device = size <= settings.device_table_gib * 2**30
        self._first = [features.numbers.first for features in mixture.features]
        self._tables = [_table(features, device) for features in mixture.features] if self.on_device else []
        dataset = PairBatches(mixture, student, settings, gathers=not self.on_device)
        self.loader = _loader(dataset, self.stream, settings, device)

    def teachers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the features of the batch's images and captions: (N, Di) and (N, Dt) float16, on its device."""
        if batch.teacher_image is not None and batch.teacher_text is not None:
            return batch.teacher_image, batch.teacher_text
        images, texts = self._tables
        return (
            images.index_select(0, batch.samples - self._first[0]),
            texts.index_select(0, batch.captions - self._first[1]),
        )

    def close(self) -> None:
        """End the loader's workers."""
        del self.loader

    def announce(self) -> str:
        """Say what an epoch is, as part of a sentence."""
        stream, batch_size = self.stream, self._settings.batch_size
        each = f" ({batch_size // self._processes} in each of {self._processes} processes)"
        left_out = f", {stream.left_out:,} left out for want of features" if stream.left_out else ""
        return (
            f"{stream.pairs:,} pairs an epoch in {len(stream):,} steps of {batch_size}"
            f"{each if self._processes > 1 else ''}, {stream.dropped or 'none'} over an even number dropped{left_out}"
            f"{self._mixed()}; teacher features {'on the device' if self.on_device else 'gathered on the host'}"
        )

    def _mixed(self) -> str:
        taken = self._shares.count(len(self.stream) * self._settings.batch_size)
        return "".join(
            f"; {share:.4g} of every batch from {path}, {count:,} of its {passes.pairs:,} pairs an epoch"
            for (path, share), count, passes in zip(
                self._settings.mix_in.items(), taken[1:], self._passes[1:], strict=True
            )
        )


def _passes(store: Store, number: int, mixture: Mixture, settings: Train, slugs: tuple[str, str]) -> Passes:
    return Passes(
        store,
        "train",
        Unusable(_failed(store, slugs[0]), _failed(store, slugs[1])),
        captions=settings.captions,
        shuffle_shards=settings.shuffle_shards,
        seed=(settings.seed, number),
        offsets=(mixture.samples.offsets[number], mixture.captions.offsets[number]),
    )


def _failed(store: Store, slug: str) -> NDArray[np.int64]:
    """Return the rows that the teacher could not encode; their flags are read only where the manifest counts some."""
    if not store.manifest.teachers[slug].invalid:
        return np.empty(0, dtype=np.int64)
    # Of a reader that goes away: it keeps the flags of all rows.
    return np.flatnonzero(~store.features(slug).valid)


def _table(features: MixedFeatures, device: torch.device) -> Tensor:
    numbers = features.numbers
    table = torch.empty((len(numbers), features.dim), dtype=torch.float16, device=device)
    for start in range(0, len(numbers), _COPIED_ROWS):
        rows = table[start : start + _COPIED_ROWS]
        rows.copy_(torch.from_numpy(features.gather(numbers.first + np.arange(start, start + len(rows)))))
    return table


def _loader(dataset: PairBatches, stream: PairStream, settings: Train, device: torch.device) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        sampler=stream,
        batch_size=None,  # a draw is a batch already
        num_workers=settings.workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_the_parent,
        pin_memory=device.type == "cuda",
        persistent_workers=settings.workers > 0,
        generator=torch.Generator(),  # else each pass would draw from the global one
    )


def _as_it_is(batch: Any) -> Any:
    return batch
