"""Image retrieval: R@1, whether the nearest other image is of the same class (docs/methods.md §4).

Shapes: n images, D the model's embedding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from torch import Tensor

from stores.console import progress_bar
from train.evaluation.image_folders import BENCHMARKS, Benchmark, LabelledImages, open_benchmark
from train.evaluation.metrics import class_recall
from train.evaluation.models import MeasuredModel, check_embeddings, require
from train.evaluation.rankings import CosineRows, nearest, nearest_other
from train.evaluation.result import DataSetError, Result

TASK: Final = "image-retrieval"
BATCH: Final = 64
READ_AHEAD: Final = 2
"""Batches that are read and decoded while the model works."""
NAMED: Final = 5


class ImageFault(NamedTuple):
    """Why a listed image is not measured."""

    name: str
    reason: str
    missing: bool


def measure_image_retrieval(model: MeasuredModel, folders: Mapping[str, Path], threads: int = 4) -> Result:
    """Return R@1 on each of the benchmarks in `folders`, and their average where all four are measured.

    A benchmark (by its name in `BENCHMARKS`; its parent folder will do) that is absent or broken becomes a message, and
    the others are measured. So many `threads` read and decode images.

    Raises:
        CusaError: the model embeds no images, or gives what is not finite.
    """
    require(model, "image", TASK)
    result = Result(task=TASK, model=model.name)
    for name, folder in folders.items():
        benchmark = BENCHMARKS[name]
        try:
            images = open_benchmark(benchmark, folder)
            result.messages.extend(_other_than_published(benchmark, images))
            measure_images(model, images, result, threads)
        except DataSetError as error:
            result.messages.append(error.message)
    if all(benchmark.title in result.figures for benchmark in BENCHMARKS.values()):
        result.add_average()
    return result


def measure_images(model: MeasuredModel, images: LabelledImages, result: Result, threads: int = 4) -> None:
    """Add the R@1 of `images` to `result`, with the counts it rests on; unreadable ones are left out and named.

    Raises:
        DataSetError: too few images can be read to rank any.
        CusaError: the model gives what is not finite.
    """
    embeddings, readable, faults = _embed(model, images, threads)
    labels = images.labels[readable]
    queries = None if images.queries is None else images.queries[readable]
    counts = {"images": len(labels), "classes": len(np.unique(labels))}
    if queries is not None:
        counts |= {"queries": int(queries.sum()), "gallery": int((~queries).sum())}
    counts |= {"missing": sum(fault.missing for fault in faults), "broken": sum(not fault.missing for fault in faults)}
    if faults:
        result.messages.append(_named(images, faults))
    result.counts[images.title] = counts
    result.figures[images.title] = recall_at_1(embeddings, labels, queries)


def recall_at_1(
    embeddings: NDArray[np.float32], labels: NDArray[np.str_], queries: NDArray[np.bool_] | None = None
) -> float:
    """Return the share in percent of queries whose nearest image has their label; ties go to the first.

    Of (n, D) finite embeddings with (n,) labels, those that are `queries` (n,) are set against the others; without
    `queries` each is set against all others.

    Raises:
        DataSetError: there is nothing to rank.
    """
    asked = len(labels) if queries is None else int(queries.sum())
    among = len(labels) if queries is None else len(labels) - asked
    if asked == 0 or among < (2 if queries is None else 1):
        raise DataSetError(f"There are {asked} queries among {among} readable images: nothing to rank.")
    vectors = torch.from_numpy(embeddings)
    if queries is None:
        return class_recall(labels[nearest_other(vectors)], labels)
    found = nearest(CosineRows(queries=vectors[queries], candidates=vectors[~queries]))
    return class_recall(labels[~queries][found], labels[queries])


def _embed(
    model: MeasuredModel, images: LabelledImages, threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[ImageFault]]:
    """Return the embeddings of the readable images (n, D), their places, and the faults of the others."""
    embedded, readable, faults = [], [], []
    with progress_bar() as progress:
        task = progress.add_task(escape(f"{model.name}: {images.title}"), total=len(images.names), note="")
        for places, found in _prepared(model, images, threads):
            good = [(place, item) for place, item in zip(places, found, strict=True) if isinstance(item, Tensor)]
            faults += [item for item in found if isinstance(item, ImageFault)]
            if good:
                readable += [place for place, _ in good]
                batch = model.encode_images([item for _, item in good])
                embedded.append(check_embeddings(batch, len(good), model.name))
            progress.advance(task, len(places))
    if not embedded:
        raise DataSetError(_named(images, faults))
    return np.concatenate(embedded), np.array(readable), faults


def _prepared(
    model: MeasuredModel, images: LabelledImages, threads: int
) -> Iterator[tuple[range, list[Tensor | ImageFault]]]:
    """Yield batches of places and their prepared images, read and decoded in threads ahead of the model.

    Threads, not processes: Pillow and torch let others run while they work, and no model need be pickled.
    """

    def prepare(place: int) -> Tensor | ImageFault:
        try:
            return model.prepare_image(images.read(place))
        except (OSError, ValueError) as error:  # absent, broken, or of a shape that cannot be resized
            return ImageFault(images.names[place], str(error), isinstance(error, FileNotFoundError))

    ahead: deque[tuple[range, Iterator[Tensor | ImageFault]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images.names), BATCH):
            places = range(start, min(start + BATCH, len(images.names)))
            ahead.append((places, pool.map(prepare, places)))
            if len(ahead) > READ_AHEAD:
                places, items = ahead.popleft()
                yield places, list(items)
        for places, items in ahead:
            yield places, list(items)


def _other_than_published(benchmark: Benchmark, images: LabelledImages) -> Iterator[str]:
    listed, classes = len(images.names), len(np.unique(images.labels))
    if (listed, classes) != (benchmark.images, benchmark.classes):
        yield (
            f"{benchmark.title}: {listed:,} test images of {classes:,} classes are listed; "
            f"published are {benchmark.images:,} of {benchmark.classes:,}. The figure is not comparable."
        )
    if again := listed - len(set(images.names)):
        yield f"{benchmark.title}: {again:,} images are listed more than once, and retrieve themselves."


def _named(images: LabelledImages, faults: list[ImageFault]) -> str:
    shown = "; ".join(f"{fault.name} ({fault.reason})" for fault in faults[:NAMED])
    more = f"; and {len(faults) - NAMED:,} more" if len(faults) > NAMED else ""
    return (
        f"{images.title}: {len(faults):,} of {len(images.names):,} images are missing or broken and are not ranked: "
        f"{shown}{more}."
    )
