"""From a store and parameters to batches: the stream, its loader, and the teachers' features joined by row.

Shapes: N batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.encoded import map_tensors
from models.inputs import Input, Tensors
from stores import Store
from stores.parameters import Train
from train.data.augment import generators_restored, seed_for
from train.data.mixture import MixedFeatures, Mixture, opened
from train.data.pairing import noisy_pairing
from train.data.passes import Passes, Unusable
from train.data.shares import MixtureShares
from train.data.stream import BatchRows, PairStream
from train.data.workers import leave_signals_to_the_parent

_COPIED_ROWS: Final = 16_384
"""How many rows of a table go to the device at once: the host holds no more of it."""


class Batch(NamedTuple):
    """N rows ready for the student; the teachers' features come along only where the host gathers them."""

    inputs: dict[str, Tensors]
    """N items of each modality."""
    numbers: dict[str, Tensor]
    """(N,) rows by level, each with its store's offset: unique over all mixed stores, on end within the split."""
    groups: Tensor
    """(N,) samples' rows; of samples that show one picture, the same."""
    present: dict[str, Tensor]
    """(N,) bool by modality, which rows have an item; of modalities that are not named, all do."""
    teachers: dict[str, Tensor]
    """(N, …) float16 by modality."""

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously from pinned memory."""
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), self)


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

    Without augmentation an item is the same every time: items are kept in memory, up to `cache_gib` for each modality
    in each loading process. With it, what a sample looks like follows from the seed, the epoch and its place there.
    """

    def __init__(self, mixture: Mixture, inputs: Mapping[str, Input], settings: Train, gathers: bool) -> None:
        """`gathers` says whether the teachers' features come along, from the host."""
        self._mixture, self._inputs = mixture, inputs
        self._teachers = mixture.teachers if gathers else {}
        self._augments, self._seed = settings.augment, settings.seed
        room = int(settings.cache_gib * 2**30)
        self._items = {
            modality: TensorCache(partial(given.item, mixture, augment=False), room)
            for modality, given in inputs.items()
        }

    def __getitem__(self, draw: BatchRows) -> Batch:
        rows = {"sample": draw.samples, "caption": draw.captions}
        return Batch(
            {modality: self._batch(modality, draw, rows[given.level]) for modality, given in self._inputs.items()},
            {level: torch.from_numpy(numbers) for level, numbers in rows.items()},
            torch.from_numpy(self._mixture.repeats.groups(draw.samples)),
            self._present(rows),
            {
                modality: torch.from_numpy(features.gather(rows[features.level]))
                for modality, features in self._teachers.items()
            },
        )

    def _batch(self, modality: str, draw: BatchRows, rows: NDArray[np.int64]) -> Tensors:
        given = self._inputs[modality]
        if not (self._augments and given.augmented):
            return given.batch(self._mixture, rows, self._items[modality].__getitem__)
        made = []
        with generators_restored():
            for place, row in enumerate(rows, draw.first_place):
                seed_for(self._seed, draw.epoch, place)
                made.append(given.item(self._mixture, int(row), augment=True))
        return given.collate(made)

    def _present(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, Tensor]:
        flags = {modality: given.present(self._mixture, rows[given.level]) for modality, given in self._inputs.items()}
        return {modality: torch.from_numpy(some) for modality, some in flags.items() if some is not None}


class TrainingData:
    """What a training sees: built once, in every process alike.

    If both teachers' tables fit the budget they lie on the device and the join is one `index_select` each; else the
    host gathers the rows (in the loader's workers) and they travel with the batch. Both give the same numbers.
    """

    def __init__(
        self,
        store: Store,
        settings: Train,
        slugs: Mapping[str, str],
        inputs: Mapping[str, Input],
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Open the split "train" of the store and of those mixed in.

        `slugs` are the teachers' folders by modality; `inputs` those of the student.

        Raises:
            TrainingError: the batch cannot be made, or the stores do not go together.
            StoreError: one of them is absent or damaged, or lacks the split or a teacher.
        """
        stores = opened(store, settings.mix_in, slugs)
        self._settings, self._processes = settings, processes
        mixture = Mixture(stores, "train", inputs, slugs)
        self._passes = [_passes(store, number, mixture, settings, slugs) for number, store in enumerate(stores)]
        self._shares = MixtureShares(tuple(settings.mix_in.values()))
        self.stream = PairStream(
            self._passes, self._shares, batch_size=settings.batch_size, rank=rank, processes=processes
        )
        size = sum(len(features.numbers) * math.prod(features.shape) * 2 for features in mixture.teachers.values())
        self.on_device = size <= settings.device_table_gib * 2**30
        self._teachers = mixture.teachers
        self._tables = {
            modality: _table(features, device) for modality, features in mixture.teachers.items() if self.on_device
        }
        dataset = PairBatches(mixture, inputs, settings, gathers=not self.on_device)
        self.loader = _loader(dataset, self.stream, settings, device)

    def teachers(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teachers' features of the batch's rows, (N, …) float16 by modality, on its device."""
        if not self._tables:
            return batch.teachers
        found = {}
        for modality, features in self._teachers.items():
            places = batch.numbers[features.level] - features.numbers.first
            found[modality] = self._tables[modality].index_select(0, places)
        return found

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


def _passes(store: Store, number: int, mixture: Mixture, settings: Train, slugs: Mapping[str, str]) -> Passes:
    return Passes(
        store,
        "train",
        Unusable(_failed(store, slugs["image"]), _failed(store, slugs["text"])),
        noisy_pairing(store, "train", settings.noise, settings.seed),
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
    table = torch.empty((len(numbers), *features.shape), dtype=torch.float16, device=device)
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
