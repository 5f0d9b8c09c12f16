"""From rows to batches: decoded images, tokens, and the teachers' features joined by row.

Shapes: N batch, Di and Dt the teachers' feature sizes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stores import Features, Store
from stores.images import decode_rgb
from train.stream import Pair
from train.student import Student, Transform


class Batch(NamedTuple):
    """Pairs ready for the student; the teachers' features come along only where the host gathers them."""

    images: Tensor
    tokens: Tensor
    samples: Tensor
    """(N,) global sample rows."""
    captions: Tensor
    """(N,) global caption rows."""
    teacher_image: Tensor | None = None
    """(N, Di) float16."""
    teacher_text: Tensor | None = None
    """(N, Dt) float16."""

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously from pinned memory."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._replace(**{name: move(tensor) for name, tensor in self._asdict().items() if tensor is not None})


class Kept:
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
    """Makes the batch of a list of (sample row, caption row) pairs; used with a batch sampler, in any process.

    A student whose training transform is its measuring transform (no augmentation) sees an image the same way every
    time: such images are kept in memory, up to `cache_gib` in each loading process.
    """

    def __init__(
        self, store: Store, student: Student, teachers: tuple[Features, Features] | None, cache_gib: float
    ) -> None:
        self._images, self._texts = store.images, store.captions["text"]
        self._transform, self._tokenizer = student.train_transform, student.tokenizer
        self._teachers = teachers
        room = int(cache_gib * 2**30)
        augments = student.train_transform != student.eval_transform
        self._pictures = Kept(self._picture, 0 if augments else room)
        self._tokens = Kept(self._tokenised, room // 8)

    def __getitems__(self, pairs: list[Pair]) -> Batch:
        samples, captions = np.array(pairs, dtype=np.int64).T.copy()
        rows = zip(self._teachers or (), (samples, captions), strict=False)
        return Batch(
            torch.stack([self._pictures[int(row)] for row in samples]),
            torch.stack([self._tokens[int(row)] for row in captions]),
            torch.from_numpy(samples),
            torch.from_numpy(captions),
            *(torch.from_numpy(teacher.gather(wanted)) for teacher, wanted in rows),
        )

    def _picture(self, row: int) -> Tensor:
        return self._transform(decode_rgb(self._images[row]))

    def _tokenised(self, row: int) -> Tensor:
        return self._tokenizer([self._texts[row].as_py()])[0]


class ImageRows(Dataset[Tensor]):
    """The transformed images of some rows, for measuring."""

    def __init__(self, store: Store, rows: NDArray[np.int64], transform: Transform) -> None:
        self._images, self._rows, self._transform = store.images, rows, transform

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Tensor:
        return self._transform(decode_rgb(self._images[int(self._rows[position])]))


class Join:
    """Finds the teachers' features of a batch's rows.

    If both tables fit the budget they lie on the device and the join is one `index_select` each; else the host
    gathers the rows (in the loader's workers) and they travel with the batch. Both give the same numbers.
    """

    def __init__(
        self, store: Store, split: str, slugs: tuple[str, str], device: torch.device, budget_gib: float
    ) -> None:
        self._features = (store.features(slugs[0]), store.features(slugs[1]))
        rows = [store.rows(split, features.modality) for features in self._features]
        size = sum(len(r) * features.dim * 2 for r, features in zip(rows, self._features, strict=True))
        self.on_device = size <= budget_gib * 2**30
        self._first = [int(r[0]) for r in rows]
        self._tables = (
            [torch.from_numpy(features.gather(r)).to(device) for r, features in zip(rows, self._features, strict=True)]
            if self.on_device
            else []
        )

    @property
    def on_host(self) -> tuple[Features, Features] | None:
        """The features that the loader must gather, if any."""
        return None if self.on_device else self._features

    @property
    def usable(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which sample rows and which caption rows have features."""
        return self._features[0].valid, self._features[1].valid

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the features of the batch's images and captions: (N, Di) and (N, Dt) float16, on its device."""
        if batch.teacher_image is not None and batch.teacher_text is not None:
            return batch.teacher_image, batch.teacher_text
        images, texts = self._tables
        return (
            images.index_select(0, batch.samples - self._first[0]),
            texts.index_select(0, batch.captions - self._first[1]),
        )
