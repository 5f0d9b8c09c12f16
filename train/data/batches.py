"""From a store and parameters to batches: the stream, its loader, and the teachers' features joined by row.

Shapes: N batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch_loader import BatchLoader
from models.encoded import moved
from models.inputs import EachItem, Input, Tensors
from stores import Store
from stores.modality import Level
from stores.parameters import Train
from train.data.judged import too_doubtful, training_pairs
from train.data.mixture import MixedFeatures, Mixture, opened
from train.data.pairing import Pairing
from train.data.partners import by_twos
from train.data.passes import Passes, Unusable
from train.data.seeds import generators_restored, seed_for
from train.data.shares import MixtureShares
from train.data.stream import BatchRows, PairStream

Rows = NDArray[np.int64]
_COPIED_ROWS: Final = 16_384
"""How many rows of a table go to the device at once: the host holds no more of it."""
_TENSOR_BYTES: Final = 1024
"""What a small tensor takes beside its numbers, and its place in a cache, about."""


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
        return moved(self, device)


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
        self._room -= tensor.nbytes + _TENSOR_BYTES
        while self._room < 0 and self._tensors:
            self._room += self._tensors.popitem(last=False)[1].nbytes + _TENSOR_BYTES
        return tensor


class PairBatches:
    """Makes the batch of a draw, in any process.

    Without augmentation an item is the same every time: items are kept in memory, up to `cache_gib` for each modality
    in each loading process. With it, what a sample looks like follows from the seed, the epoch and its place there.
    """

    def __init__(
        self, mixture: Mixture, inputs: Mapping[str, Input], settings: Train, gathers: bool, classed: bool
    ) -> None:
        """`gathers` says whether the teachers' features come along, from the host, `classed` whether classes do."""
        self._mixture, self._inputs = mixture, inputs
        self._teachers = mixture.teachers if gathers else {}
        self._classed = classed
        self._augments, self._seed = settings.augment, settings.seed
        room = int(settings.cache_gib * 2**30)
        self._items = {
            modality: TensorCache(partial(given.item, mixture, augment=False), room)
            for modality, given in inputs.items()
            if isinstance(given, EachItem)
        }

    def __call__(self, draw: BatchRows) -> Batch:
        rows = _rows(self._mixture, draw.samples, draw.captions, self._classed)
        flags = _present(self._mixture, self._inputs, rows)
        return Batch(
            {modality: self._batch(modality, draw, rows[given.level]) for modality, given in self._inputs.items()},
            {level: torch.from_numpy(numbers) for level, numbers in rows.items()},
            torch.from_numpy(self._mixture.repeats.groups(draw.samples)),
            {modality: torch.from_numpy(some) for modality, some in flags.items()},
            {
                modality: torch.from_numpy(features.gather(rows[features.level]))
                for modality, features in self._teachers.items()
            },
        )

    def _batch(self, modality: str, draw: BatchRows, rows: NDArray[np.int64]) -> Tensors:
        given = self._inputs[modality]
        if not isinstance(given, EachItem):
            return given.batch(self._mixture, rows)
        if not (self._augments and given.augmented):
            return given.collate([self._items[modality][int(row)] for row in rows])
        made = []
        with generators_restored():
            for place, row in enumerate(rows, draw.first_place):
                seed_for(self._seed, draw.epoch, place)
                made.append(given.item(self._mixture, int(row), augment=True))
        return given.collate(made)


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
        classed: bool = False,
        soft: bool = True,
    ) -> None:
        """Open the split "train" of the store and of those mixed in.

        `slugs` are the teachers' folders by modality; `inputs` those of the student; `classed` says whether the
        samples' classes come along, `soft` whether the teachers' features do, as a loss with soft labels needs.

        Raises:
            TrainingError: the batch cannot be made, or the stores do not go together.
            StoreError: one of them is absent or damaged, or lacks the split or a teacher.
        """
        stores = opened(store, settings.mix_in, slugs)
        self._settings, self._processes = settings, processes
        mixture = Mixture(stores, "train", inputs, slugs if soft else {})
        self._mixture = mixture
        arranged = partial(_with_partners, mixture, inputs, settings.batch_size)
        self._passes = [
            _passes(store, number, mixture, settings, slugs, arranged, soft) for number, store in enumerate(stores)
        ]
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
        self.pairs = training_pairs(stores, mixture.captions, settings)
        """The captions of the split, and what is known of their pairs."""
        made = PairBatches(mixture, inputs, settings, gathers=not self.on_device, classed=classed)
        self.loader = BatchLoader(made, self.stream, settings.workers, device)

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
        absent, doubtful = stream.left_out - stream.doubtful, f", {stream.doubtful:,} left out as too doubtful"
        left_out = f", {absent:,} left out for want of features" if absent else ""
        left_out += doubtful if stream.doubtful else ""
        where = "on the device" if self.on_device else "gathered on the host"
        return (
            f"{stream.pairs:,} pairs an epoch in {len(stream):,} steps of {batch_size}"
            f"{each if self._processes > 1 else ''}, {stream.dropped or 'none'} over an even number dropped{left_out}"
            f"{self._gaps()}{self._mixed()}; teacher features {where}"
        )

    def _gaps(self) -> str:
        shares = {name: features.share for name, features in self._mixture.features.items()}
        return "".join(f"; {share:.1%} of the {name} there" for name, share in shares.items() if share < 1)

    def _mixed(self) -> str:
        taken = self._shares.count(len(self.stream) * self._settings.batch_size)
        return "".join(
            f"; {share:.4g} of every batch from {path}, {count:,} of its {passes.pairs:,} pairs an epoch"
            for (path, share), count, passes in zip(
                self._settings.mix_in.items(), taken[1:], self._passes[1:], strict=True
            )
        )


def _rows(mixture: Mixture, samples: Rows, captions: Rows, classed: bool) -> dict[Level, Rows]:
    """Return the numbers of the rows of pairs (n,) by level; of classes where they are asked for."""
    rows: dict[Level, Rows] = {"sample": samples, "caption": captions}
    return {**rows, "class": mixture.classes.of(samples)} if classed else rows


def _present(mixture: Mixture, inputs: Mapping[str, Input], rows: Mapping[Level, Rows]) -> dict[str, NDArray[np.bool_]]:
    """Return which rows (n,) have an item, of the modalities that lack some."""
    flags = {modality: given.present(mixture, rows[given.level]) for modality, given in inputs.items()}
    return {modality: some for modality, some in flags.items() if some is not None}


def _with_partners(mixture: Mixture, inputs: Mapping[str, Input], batch_size: int, pairs: Rows) -> Rows:
    """Bring shuffled pairs (n, 2) into an order in which rare modalities meet another of their kind."""
    if not any(given.reads for given in inputs.values()):
        return pairs
    classed = any(given.level == "class" for given in inputs.values())
    flags = _present(mixture, inputs, _rows(mixture, pairs[:, 0], pairs[:, 1], classed))
    return pairs[by_twos(np.stack(list(flags.values()), axis=1), batch_size)] if flags else pairs


def _passes(
    store: Store,
    number: int,
    mixture: Mixture,
    settings: Train,
    slugs: Mapping[str, str],
    arranged: Callable[[Rows], Rows],
    soft: bool,
) -> Passes:
    doubtful = np.empty(0, dtype=np.int64) if number else too_doubtful(store, settings)
    return Passes(
        store,
        "train",
        Unusable(
            _failed(store, slugs["image"], soft),
            np.union1d(_failed(store, slugs["text"], soft), doubtful),
            len(doubtful),
        ),
        Pairing(store, "train"),
        captions=settings.captions,
        shuffle_shards=settings.shuffle_shards,
        seed=(settings.seed, number),
        offsets=(mixture.samples.offsets[number], mixture.captions.offsets[number]),
        arranged=arranged,
    )


def _failed(store: Store, slug: str, soft: bool) -> NDArray[np.int64]:
    """Return the rows that the teacher could not encode; their flags are read only where the manifest counts some.

    Without soft labels, those without an image are none of them: a student may have other features to go by.
    """
    if not store.manifest.teachers[slug].invalid:
        return np.empty(0, dtype=np.int64)
    # Of a reader that goes away: it keeps the flags of all rows.
    features = store.features(slug)
    rows = np.flatnonzero(~features.valid)
    return rows if soft or features.level != "sample" else rows[store.images.present(rows)]


def _table(features: MixedFeatures, device: torch.device) -> Tensor:
    numbers = features.numbers
    table = torch.empty((len(numbers), *features.shape), dtype=torch.float16, device=device)
    for start in range(0, len(numbers), _COPIED_ROWS):
        rows = table[start : start + _COPIED_ROWS]
        rows.copy_(torch.from_numpy(features.gather(numbers.first + np.arange(start, start + len(rows)))))
    return table
