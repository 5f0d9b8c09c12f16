"""Encode what is missing of one teacher's features, window by window, and write each pending shard's part.

Features come by window and take the places of their rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from models.teachers import TeacherCard
from pipeline.encode.encoder import WindowFeatures
from pipeline.encode.engine import Engine
from pipeline.encode.windows import Job, Window, plan_windows
from pipeline.first_seen import first_seen
from stores import Features, Shard
from stores.features import PartOrigin, part_batch_size, write_part
from stores.layout import Layout
from stores.parameters import Extract

_WINDOW_BYTES: Final = 2**28
"""The most that a window's features take: `extract.window` rows do where a feature has up to 8,192 numbers. A function
of the teacher alone, so that a store is the same bytes on every machine."""


def extract_features(
    engine: Engine,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    layout: Layout,
    settings: Extract,
    progress: Progress,
) -> None:
    """Encode the rows of the `pending` ones among all `shards` with the engine's teacher and write their parts.

    Raises:
        TeacherError: a row does not fit into memory, or an encoding process is lost for good.
    """
    teacher = engine.card
    total = sum(shard.rows(teacher.level) for shard in pending)
    title = f"{teacher.modality}s · {teacher.slug}"
    task = progress.add_task(title, total=total, note=f"{teacher.precision}, {engine.description}")
    names = {shard.name for shard in pending}
    batch_size = _batch_size(engine, {shard.name for shard in shards} - names, layout, settings)
    writer = _PartWriter(teacher, shards, layout, batch_size)
    planned: deque[Window] = deque()

    def noted(windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            planned.append(window)
            yield window

    with first_seen(layout.root) as seen:
        size = min(settings.window, max(1, _WINDOW_BYTES // (2 * teacher.dim)))
        windows = plan_windows(shards, names, teacher.level, size, layout, seen)
        advance = partial(progress.advance, task)
        job = Job(layout=layout, shards=tuple(shards), batch_size=batch_size)
        for encoded in engine.encode(noted(windows), job, advance):
            writer.write(planned.popleft(), encoded)
            if writer.invalid:
                progress.update(task, note=f"{writer.invalid:,} absent")


def _batch_size(engine: Engine, whole: Set[str], layout: Layout, settings: Extract) -> int:
    """Return the engine's batch size, or for `auto` that of the `whole` parts: another would round otherwise."""
    given = settings.image_batch if engine.card.modality == "image" else settings.text_batch
    if given != "auto" or not whole:
        return engine.batch_size
    return part_batch_size(layout.features(engine.card.slug, min(whole)))


class _PartWriter:
    """Writes the parts of windows that come in the order of rows; `invalid` counts the rows without features."""

    def __init__(self, teacher: TeacherCard, shards: Sequence[Shard], layout: Layout, batch_size: int) -> None:
        self._teacher = teacher
        self._batch_size = batch_size
        self._layout = layout
        # Parts are mapped when they are asked for, so those of this run can be read as soon as they are written.
        self._written = Features(layout, teacher.slug, tuple(shards), teacher.feature_set({}))
        self.invalid = 0

    def write(self, window: Window, encoded: WindowFeatures) -> None:
        """Write the parts of the window's pending shards.

        A row whose content first came in a part that is in place takes its features from there.
        """
        rows = window.rows(self._teacher.level)
        features = np.zeros((len(rows), self._teacher.dim), np.float16)
        valid = np.zeros(len(rows), bool)
        places = encoded.rows - window.first_row(self._teacher.level)
        features[places], valid[places] = encoded.features, encoded.valid
        start = 0
        for shard in window.shards:
            here = np.arange(start, start + shard.rows(self._teacher.level))
            start += len(here)
            if len(here) and not window.pending[here[0]]:
                continue
            self._fill(here, window, features, valid)
            self.invalid += int((~valid[here]).sum())
            origin = PartOrigin(teacher_fingerprint=self._teacher.fingerprint, shard_sha256=shard.sha256)
            path = self._layout.features(self._teacher.slug, shard.name)
            stored = features[here].reshape(-1, *self._teacher.shape)
            write_part(path, stored, valid[here], origin, self._batch_size, self._teacher.precision)

    def _fill(
        self, here: NDArray[np.int64], window: Window, features: NDArray[np.float16], valid: NDArray[np.bool_]
    ) -> None:
        """Give the rows at the places `here` that repeat another row its features."""
        firsts = window.firsts[here]
        first_row = window.first_row(self._teacher.level)
        repeats = firsts != here + first_row
        inside = repeats & (firsts >= first_row)
        inside[inside] = window.pending[firsts[inside] - first_row]
        features[here[inside]] = features[firsts[inside] - first_row]
        valid[here[inside]] = valid[firsts[inside] - first_row]
        outside = repeats & ~inside
        if outside.any():
            copied = self._written.gather(firsts[outside]).reshape(-1, self._teacher.dim)
            # Rows that could not be encoded are zero, and only they (`Encoder`).
            features[here[outside]], valid[here[outside]] = copied, copied.any(axis=1)
