"""The engine on a Ray cluster: windows of shards are tasks of actors, each of which holds the teachers on one GPU.

Where the cluster has no GPU, each CPU is an actor's. The store must lie where all machines see it under one path. Ray
starts a lost actor again and repeats its tasks; results are taken in the order of windows, so the parts are those of
the local engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, Final

import torch

from models.teachers import TeacherCard, TeacherSpec
from pipeline.batch_size import batch_size
from pipeline.encode.agreement import agree
from pipeline.encode.encoder import Encoder, WindowFeatures, decoding_processes
from pipeline.encode.windows import Job, Window
from stores import ParameterError, TeacherError
from stores.errors import CusaError
from stores.layout import Layout
from stores.parameters import Extract

try:
    import ray
except ImportError:
    raise ParameterError(
        "extract.engine is ray, which is not installed. In the checkout: pip install -c constraints.txt -e '.[ray]'."
    ) from None

_AT_ONCE: Final = 2
"""Windows in one actor's hands: while one is encoded, the next is being decoded."""
_AHEAD: Final = 8
"""Windows an actor may be ahead of the slowest, in whose place results wait in Ray's object store."""
_RESTARTS: Final = 10
_PATIENCE: Final = 600.0
"""Seconds in which the cluster must have started the actors."""


class _Actor:
    """Holds the teachers on one device."""

    def __init__(self, specs: Sequence[TeacherSpec], settings: Extract, device: str) -> None:
        self._settings, self._turn = settings, Lock()
        if device == "cpu":
            torch.set_num_threads(1)
        self._fault: CusaError | None = None
        try:
            self._teachers = [spec.load(device, settings.precision) for spec in specs]
        except CusaError as fault:
            self._fault = fault

    def describe(self) -> list[tuple[TeacherCard, int]] | CusaError:
        """Return each teacher's card and batch size, or why they could not be loaded."""
        if self._fault:
            return self._fault
        return [(TeacherCard.of(teacher), batch_size(teacher, self._settings)) for teacher in self._teachers]

    def encode(self, number: int, job: Job, window: Window) -> WindowFeatures | CusaError:
        """Return what the window asks of teacher `number`."""
        teacher = self._teachers[number]
        workers = decoding_processes(self._settings, teacher.device) if teacher.device.type == "cuda" else 0
        try:
            return next(Encoder(teacher, job, workers, self._turn).encode([window], lambda rows: None))
        except CusaError as fault:
            return fault


class RayEngine:
    """Encodes on a Ray cluster with one of the actors' teachers."""

    def __init__(self, actors: Sequence[Any], number: int, card: TeacherCard, size: int) -> None:
        self._actors, self._number = actors, number
        self.card, self.batch_size = card, size
        self.description = f"Ray, {len(actors)} actor{'s' * (len(actors) > 1)}"

    def encode(self, windows: Iterator[Window], job: Job, advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        shared = ray.put(replace(job, layout=Layout(job.layout.root.resolve())))
        free = deque([actor for _ in range(_AT_ONCE) for actor in self._actors])
        running: dict[Any, Any] = {}
        ordered: deque[tuple[Any, int]] = deque()
        for window in windows:
            if not free:
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                free.append(running.pop(ready))
            actor = free.popleft()
            task = actor.encode.remote(self._number, shared, window)
            running[task] = actor
            ordered.append((task, window.encoded))
            while ordered[0][0] not in running or len(ordered) > _AHEAD * len(self._actors):
                yield _taken(*ordered.popleft(), advance)
        while ordered:
            yield _taken(*ordered.popleft(), advance)


@contextmanager
def open_ray(specs: Sequence[TeacherSpec], settings: Extract) -> Iterator[list[RayEngine]]:
    """Start the actors, on the cluster that RAY_ADDRESS or `ray start` names, or on one of this machine alone.

    Raises:
        TeacherError: a teacher cannot be loaded, or the actors do not start.
    """
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ParameterError(
                f"No Ray cluster can be used ({_first_line(error)}). Check RAY_ADDRESS and `ray status`, or leave "
                f"RAY_ADDRESS away: then Ray runs on this machine."
            ) from None
    actors: list[Any] = []
    try:
        actors += _start(specs, settings)
        yield _engines(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
        if own:
            ray.shutdown()


def _start(specs: Sequence[TeacherSpec], settings: Extract) -> list[Any]:
    resources = ray.cluster_resources()
    on_gpu = settings.device != "cpu" and resources.get("GPU", 0) >= 1
    count = int(resources.get("GPU" if on_gpu else "CPU", 1))
    if settings.workers is None:  # an actor cannot tell how many others are on its machine
        settings = replace(settings, workers=max(1, int(resources.get("CPU", 1)) // count))
    actor = ray.remote(
        num_gpus=1 if on_gpu else 0,
        num_cpus=1,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
        max_concurrency=_AT_ONCE,
    )(_Actor)
    return [actor.remote(specs, settings, "cuda" if on_gpu else "cpu") for _ in range(count)]


def _engines(actors: Sequence[Any]) -> list[RayEngine]:
    try:
        described = ray.get([actor.describe.remote() for actor in actors], timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError:
        raise TeacherError(
            f"The Ray cluster did not start {len(actors)} actors within {_PATIENCE:.0f} s; it offers "
            f"{ray.available_resources()}. See `ray status`."
        ) from None
    except ray.exceptions.RayError as error:
        raise TeacherError(f"The actors on the Ray cluster could not start: {_first_line(error)}") from None
    for fault in described:
        if isinstance(fault, CusaError):
            raise fault
    return [RayEngine(actors, number, card, size) for number, (card, size) in enumerate(agree(described))]


def _taken(task: Any, rows: int, advance: Callable[[int], None]) -> WindowFeatures:
    try:
        encoded = ray.get(task)
    except ray.exceptions.RayActorError as error:
        problem = f"An encoding actor was lost {_RESTARTS} times over ({_first_line(error)})"
        raise TeacherError(problem, advice="Run the same command again: finished parts are kept.") from None
    except ray.exceptions.RayError as error:
        raise TeacherError(
            f"An encoding actor failed: {_first_line(getattr(error, 'cause', None) or error)}. All machines must see "
            f"the store and the weights under the same path. Finished parts are kept."
        ) from None
    if isinstance(encoded, CusaError):
        raise encoded
    advance(rows)
    found: WindowFeatures = encoded
    return found


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
