"""The engine of one device: the teacher in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.batch_size import batch_size
from pipeline.encode.encoder import Encoded, Encoder
from pipeline.encode.windows import Window
from pipeline.teachers import TeacherCard, TeacherSpec
from stores import Shard
from stores.layout import Layout
from stores.parameters import Extract


class InProcess:
    """Encodes in this process."""

    def __init__(self, spec: TeacherSpec, settings: Extract, device: str) -> None:
        self._teacher = spec.load(device, settings.precision)
        self._settings = settings
        self.card = TeacherCard.of(self._teacher)
        self.description = str(self._teacher.device)

    def encode(
        self, windows: Iterator[Window], shards: Sequence[Shard], layout: Layout, advance: Callable[[int], None]
    ) -> Iterator[Encoded]:
        """Yield what each window asks for, in order."""
        size = batch_size(self._teacher, self._settings)
        yield from Encoder(self._teacher, layout, shards, size, self._settings.workers).encode(windows, advance)
