"""An encoder: one teacher on one device, over the windows that it is given.

Images are decoded by worker processes beside the model; where that has the processor to itself, by threads between its
batches, since processes would hold up each of its steps. Texts are tokenised once, on a thread, and batched by their
lengths, so that batches hold little padding. While a window is encoded, the next one is already being prepared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch_loader import BatchLoader, reported
from models.encoded import tensors_of
from models.teachers import Teacher
from models.teachers.teacher import MIN_COSINE
from pipeline.batch_size import an_image, encode_backing_off, first_rows, precision_cosine
from pipeline.encode.windows import Job, Window
from stores import tables
from stores.console import console
from stores.cores import usable_cores
from stores.images import DecodingError, Images
from stores.parameters import Extract

_PREFETCH: Final = 4
"""Batches that each decoding process has ready, as far as they fit into these bytes, of one at least."""
_PREFETCHED_BYTES: Final = 2**30
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 (Linux has it here)
_BESIDE_A_PROCESSOR: Final = 2
_TOKENISED_TOGETHER: Final = 1024
_CHECKED_ROWS: Final = 16


@dataclass(frozen=True, kw_only=True)
class WindowFeatures:
    """The features of a window's pending rows that are the first of their content."""

    rows: NDArray[np.int64]
    """(n,) ascending."""
    features: NDArray[np.float16]
    """(n, dim), L2-normalised if the teacher's are vectors; zero where the row could not be encoded."""
    valid: NDArray[np.bool_]
    """(n,)"""


def decoding_processes(settings: Extract, device: torch.device, models: int = 1) -> int:
    """Return how many processes decode images beside each of so many `models`, which share this machine's cores."""
    if settings.workers is not None:
        return settings.workers
    return _BESIDE_A_PROCESSOR if device.type == "cpu" else max(1, usable_cores() // models)


def processes_that_fit(batch_bytes: int) -> int:
    """Return how many may have batches of two windows ready in half of the free shared memory; at least 1."""
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # another system
        return usable_cores()
    return max(1, free // (4 * batch_bytes))


Batch = tuple[NDArray[np.int64], Any, NDArray[np.int64]]
"""Rows, their collated inputs (None without rows), and the rows that could not be decoded."""


class Encoder:
    """Encodes windows of a store with one teacher."""

    def __init__(
        self, teacher: Teacher, job: Job, workers: int, turn: AbstractContextManager[Any] | None = None
    ) -> None:
        """`turn` is held while the teacher computes: others may share it, and models keep what they compute with."""
        self._teacher, self._workers, self._turn = teacher, min(workers, usable_cores()), turn or nullcontext()
        self._layout, self._batch_size = job.layout, job.batch_size
        self._decoded = partial(_decoded, Images(job.layout, job.shards), teacher)

    def encode(self, windows: Iterable[Window], advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        """Yield what each window asks for, in order, calling `advance` with the rows done."""
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as beside:
            for window, batches in _one_ahead((window, self._start(window, beside)) for window in windows):
                yield self._encode(window, batches, advance)

    def _start(self, window: Window, beside: ThreadPoolExecutor) -> Iterator[Batch]:
        """Begin to prepare a window's batches beside the model."""
        rows = window.rows(self._teacher.level)
        own = window.firsts == rows
        unique, wanted = rows[own], window.pending[own]
        if self._teacher.modality == "image":
            return self._image_batches(unique, wanted)
        prepared = beside.submit(self._prepared_texts, window, own)
        return self._text_batches(unique, wanted, prepared.result)

    def _image_batches(self, rows: NDArray[np.int64], wanted: NDArray[np.bool_]) -> Iterator[Batch]:
        size = self._batch_size
        batches = [rows[at : at + size] for at in range(0, len(rows), size) if wanted[at : at + size].any()]
        if self._workers and self._teacher.decodes_in_threads and self._teacher.device.type == "cpu":
            return self._decoded_between(batches)
        if not (workers := min(self._workers, len(batches))):
            return iter(BatchLoader(self._decoded, batches, 0, self._teacher.device))
        workers = min(workers, processes_that_fit(self._batch_bytes))
        return iter(BatchLoader(self._decoded, batches, workers, self._teacher.device, self._prefetched(workers)))

    def _prefetched(self, workers: int) -> int:
        """Return how many batches each of the processes may have ready, where two windows are in hand."""
        return max(1, min(_PREFETCH, _PREFETCHED_BYTES // (2 * workers * self._batch_bytes)))

    @cached_property
    def _batch_bytes(self) -> int:
        image: int = sum(tensor.nbytes for tensor in tensors_of(self._teacher.collate([an_image(self._teacher)])))
        return max(1, self._batch_size * image)

    def _decoded_between(self, batches: list[NDArray[np.int64]]) -> Iterator[Batch]:
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as threads:
            yield from map(partial(self._decoded, each=threads.map), batches)

    def _prepared_texts(self, window: Window, own: NDArray[np.bool_]) -> list[Any]:
        reader = tables.open_batches(self._layout.captions, tables.CAPTIONS)
        batches = (reader.get_batch(window.number + place) for place in range(len(window.shards)))
        everything = [text for batch in batches for text in batch["text"].to_pylist()]
        texts = list(compress(everything, own))
        runs = (texts[start : start + _TOKENISED_TOGETHER] for start in range(0, len(texts), _TOKENISED_TOGETHER))
        return [item for run in runs for item in self._teacher.prepare(run)]

    def _text_batches(
        self, rows: NDArray[np.int64], wanted: NDArray[np.bool_], prepared: Callable[[], list[Any]]
    ) -> Iterator[Batch]:
        items = prepared()
        # The longest first: what does not fit into memory shows at once.
        order = np.argsort([-self._teacher.length(item) for item in items], kind="stable")
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            if wanted[places].any():
                yield rows[places], self._teacher.collate([items[place] for place in places]), _NO_ROWS

    def _encode(self, window: Window, batches: Iterator[Batch], advance: Callable[[int], None]) -> WindowFeatures:
        rows = window.rows(self._teacher.level)
        asked = rows[window.pending & (window.firsts == rows)]
        features = np.zeros((len(asked), self._teacher.dim), np.float16)
        valid = np.zeros(len(asked), bool)
        advance(window.encoded - len(asked))
        check = window.opening
        for encoded, batch, failed in reported(batches):
            if len(encoded):
                with self._turn:
                    if check:
                        _say_if_imprecise(self._teacher, batch)
                        check = False
                    values = _stored(encode_backing_off(self._teacher, batch), self._teacher.unit)
                kept = np.isin(encoded, asked, assume_unique=True)
                places = np.searchsorted(asked, encoded[kept])
                good = np.logical_and(np.isfinite(values).all(axis=1), values.any(axis=1))
                features[places] = np.where(good[:, None], values, np.float16(0))[kept]
                valid[places] = good[kept]
            advance(int(np.isin(np.concatenate([encoded, failed]), asked, assume_unique=True).sum()))
        return WindowFeatures(rows=asked, features=features, valid=valid)


_NO_ROWS: Final = np.empty(0, dtype=np.int64)


def _decoded(images: Images, teacher: Teacher, rows: NDArray[np.int64], each: Callable[..., Any] = map) -> Batch:
    """Return a batch of the images of `rows` that can be decoded; `each` maps a function over them, as `map` does."""

    def prepared(row: int) -> Any:
        try:
            return teacher.preprocess_file(images[row])
        except DecodingError:
            return None

    items = list(each(prepared, rows.tolist()))
    good = np.array([item is not None for item in items])
    batch = teacher.collate([item for item in items if item is not None]) if good.any() else None
    return rows[good], batch, rows[~good]


def _stored(features: Tensor, unit: bool) -> NDArray[np.float16]:
    scaled = torch.nn.functional.normalize(features, dim=1) if unit else features
    values: NDArray[np.float16] = scaled.to(torch.float16).cpu().numpy()
    return values


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield each item after the next one has been begun."""
    iterator = iter(items)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current
        current = following


def _say_if_imprecise(teacher: Teacher, batch: Any) -> None:
    cosine = precision_cosine(teacher, first_rows(batch, _CHECKED_ROWS))
    if cosine < MIN_COSINE:
        console.print(
            f"Warning: {teacher.spec} in {teacher.precision} strays from fp32: smallest cosine "
            f"{cosine:.5f}, expected at least {MIN_COSINE}. Set extract.precision: fp32.",
            style="yellow",
        )
