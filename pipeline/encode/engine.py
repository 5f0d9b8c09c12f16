"""Engines: where windows are encoded. All take them in order and give them back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch

from models.teachers import TeacherCard, TeacherSpec
from pipeline.batch_size import batch_size
from pipeline.encode.encoder import Encoder, WindowFeatures, decoding_processes
from pipeline.encode.process_engine import open_processes
from pipeline.encode.windows import Job, Window
from stores.hardware import use_device
from stores.parameters import Extract


class Engine(Protocol):
    """Encodes windows with one teacher."""

    card: TeacherCard
    description: str
    """Where it runs, in a word or two."""

    @property
    def batch_size(self) -> int:
        """What the settings ask for, or what fits where it runs."""

    def encode(self, windows: Iterator[Window], job: Job, advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        """Yield what each window asks for, in order, calling `advance` with the rows done since."""


class InProcess:
    """Encodes in this process."""

    def __init__(self, spec: TeacherSpec, settings: Extract, device: str) -> None:
        self.teacher = spec.load(device, settings.precision)
        self._settings = settings
        self.card = TeacherCard.of(self.teacher)
        self.description = str(self.teacher.device)

    def encode(self, windows: Iterator[Window], job: Job, advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        workers = decoding_processes(self._settings, self.teacher.device)
        yield from Encoder(self.teacher, job, workers).encode(windows, advance)

    @cached_property
    def batch_size(self) -> int:
        """Finding it may take a moment, so it is done when it is first asked for."""
        return batch_size(self.teacher, self._settings)


@contextmanager
def open_engines(specs: Sequence[TeacherSpec], settings: Extract) -> Iterator[Sequence[Engine]]:
    """Load teachers where `settings` say: in this process, in one process a device, or on a Ray cluster.

    Raises:
        TeacherError: a teacher cannot be loaded.
        ParameterError: a device cannot be used, or Ray is not installed.
    """
    if settings.engine == "ray":
        from pipeline.encode.ray_engine import open_ray

        with open_ray(specs, settings) as engines:
            yield engines
        return
    devices = device_names(settings.device)
    if len(devices) == 1:
        use_device(devices[0])
        yield [InProcess(spec, settings, devices[0]) for spec in specs]
        return
    with open_processes(specs, settings, devices) as engines:
        yield engines


def device_names(device: str) -> list[str]:
    """Return the devices that `extract.device` names: all GPUs for "auto", else what stands between the commas."""
    if device == "auto" and (count := torch.cuda.device_count()) > 1:
        return [f"cuda:{number}" for number in range(count)]
    return [name.strip() for name in device.split(",")]
