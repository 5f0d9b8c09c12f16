"""Batch sizes that fit: the largest one found beforehand, and a batch halved where memory runs out all the same.

Shapes: B batch, D the teacher's feature size.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from torch import Tensor, nn

from models.encoded import map_tensors, tensors_of
from models.teachers import Teacher
from stores.console import console
from stores.errors import TeacherError
from stores.hardware import ComputePrecision
from stores.parameters import Extract

WITHOUT_PROBING: Final = {"image": 64, "text": 128}
"""Batch sizes on devices other than CUDA; measured on a processor, larger ones are no faster."""
LIMIT: Final = {"image": 1024, "text": 2048}
"""The largest batch sizes that are tried on CUDA: a GPU's rate no longer grows beyond them."""
_OUT_OF_MEMORY: Final = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""Want of memory in the words of libraries that allocate beside torch."""


def encode_backing_off(teacher: Teacher, batch: Any) -> Tensor:
    """Return `teacher.encode(batch)`, (B, D); where memory runs out, of the batch's halves one after the other.

    A batch is a tensor, a list of strings, or any nesting of dicts, lists and tuples of such; each is cut along its
    rows, its first dimension. What is neither (a number, a name) goes with every half.

    Raises:
        TeacherError: a single row does not fit.
    """
    features, largest = _encode(teacher, batch)
    if largest < len(features) and not teacher.backed_off:
        teacher.backed_off = True
        console.print(
            f"Out of memory: {teacher.spec} takes {largest} of the {len(features)} rows of a batch at once; "
            f"such batches are halved. Setting extract.{teacher.modality}_batch: {largest} avoids the failed tries.",
            style="yellow",
        )
    return features


def precision_cosine(teacher: Teacher, batch: Any) -> float:
    """Return the smallest cosine similarity between a batch's features in the teacher's precision and in fp32.

    Raises:
        TeacherError: a single row does not fit.
    """
    if teacher.precision == "fp32":
        return 1.0
    exact, _ = _encode(teacher, batch, "fp32")
    return float(nn.functional.cosine_similarity(_encode(teacher, batch)[0], exact).min())


def batch_size(teacher: Teacher, settings: Extract) -> int:
    """Return the batch size that `settings` give; for `auto`, the largest that fits with the longest input there is."""
    given = settings.image_batch if teacher.modality == "image" else settings.text_batch
    if given != "auto":
        return given
    if teacher.device.type != "cuda":
        return WITHOUT_PROBING[teacher.modality]
    if teacher.modality == "image":
        items = [an_image(teacher)]
    else:
        items = teacher.prepare(["longer than any teacher reads " * 2000])
    return largest_batch(teacher, items, LIMIT[teacher.modality])


def an_image(teacher: Teacher) -> Any:
    """Return a preprocessed image; all of a teacher's are as large."""
    return teacher.preprocess(Image.new("RGB", (640, 480)))


def largest_batch(teacher: Teacher, items: list[Any], limit: int) -> int:
    """Return the largest power of two, at most `limit`, of which twice as much still fits.

    It is found by doubling, with the longest of `items` (preprocessed) in every row. The other half is room for
    fragmentation, for the batches on their way to the device and for whoever shares it; the rate is at its best long
    before the memory is full.
    """
    longest = max(items, key=teacher.length)
    size = 1
    while 2 * size <= limit and _fits(teacher, longest, 4 * size):
        size *= 2
    return size


def first_rows(batch: Any, rows: int) -> Any:
    """Return a batch of the first `rows` rows."""
    return map_tensors(lambda part: part[:rows], batch, _is_rows)


def _encode(teacher: Teacher, batch: Any, precision: ComputePrecision | None = None) -> tuple[Tensor, int]:
    """Return the features of a batch, and the most rows that were encoded at once."""
    failure = None
    try:
        features = teacher.encode(batch, precision)
        return features, len(features)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        failure = str(error)
    # Only here is the error gone, and with it what its frames still held.
    clear_device_cache()
    rows = next(map(len, tensors_of(batch, _is_rows)), 0)
    if rows < 2:
        raise TeacherError(
            f"{teacher.spec} runs out of memory on a single {teacher.modality}: {failure.splitlines()[0]} "
            f"Free the device {teacher.device}, choose another (extract.device) or a smaller teacher."
        )
    middle = (rows + 1) // 2
    first, most = _encode(teacher, first_rows(batch, middle), precision)
    second, also = _encode(teacher, map_tensors(lambda part: part[middle:], batch, _is_rows), precision)
    return torch.cat([first, second]), max(most, also)


def _fits(teacher: Teacher, item: Any, size: int) -> bool:
    try:
        teacher.encode(teacher.collate([item] * size))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    clear_device_cache()
    return fits


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = any(words in str(error) for words in _OUT_OF_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _is_rows(batch: Any) -> bool:
    if isinstance(batch, Tensor):
        return batch.ndim > 0
    return isinstance(batch, (list, tuple)) and all(isinstance(item, str) for item in batch)
