"""The engine of one device: the teacher in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from models.teachers import TeacherCard, TeacherSpec
from pipeline.batch_size import batch_size
from pipeline.encode.encoder import Encoder, WindowFeatures
from pipeline.encode.windows import Job, Window
from stores.parameters import Extract


class InProcess:
    """Encodes in this process."""

    def __init__(self, spec: TeacherSpec, settings: Extract, device: str) -> None:
        self.teacher = spec.load(device, settings.precision)
        self._settings = settings
        self.card = TeacherCard.of(self.teacher)
        self.description = str(self.teacher.device)

    def encode(self, windows: Iterator[Window], job: Job, advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        """Yield what each window asks for, in order."""
        yield from Encoder(self.teacher, job, self._settings.workers).encode(windows, advance)

    @cached_property
    def batch_size(self) -> int:
        """Finding it may take a moment, so it is done when it is first asked for."""
        return batch_size(self.teacher, self._settings)
