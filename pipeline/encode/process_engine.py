"""The engine of several devices on one machine: one process a device, each with the teachers loaded."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from queue import Empty
from typing import Any, Final

import torch

from models.teachers import TeacherCard, TeacherSpec
from pipeline.batch_size import batch_size
from pipeline.encode.agreement import agree
from pipeline.encode.encoder import Encoder, WindowFeatures, decoding_processes
from pipeline.encode.windows import Job, Window
from stores import TeacherError
from stores.commands import end_with_the_parent
from stores.cores import usable_cores
from stores.errors import CusaError
from stores.hardware import use_device
from stores.parameters import Extract

_QUEUED: Final = 2
"""Windows that wait for a process, and results that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    device: str
    process: Any
    tasks: Any
    results: Any
    done: Any
    """How many rows all processes have done, since they began."""

    def result(self) -> Any:
        """Wait for what the process says next.

        Raises:
            TeacherError: it is lost, or says that it cannot go on.
        """
        while True:
            try:
                result = self.results.get(timeout=1)
            except Empty:
                if self.process.is_alive():
                    continue
                problem = f"The process that encodes on {self.device} was lost (exit code {self.process.exitcode})"
                raise TeacherError(problem, advice="Run the same command again: finished parts are kept.") from None
            if isinstance(result, BaseException):
                raise result
            return result


class ProcessEngine:
    """Encodes with one of the processes' teachers; windows are dealt in turn, and results taken in the same turn."""

    def __init__(self, workers: Sequence[_Worker], number: int, card: TeacherCard, size: int) -> None:
        self._workers, self._number = workers, number
        self.card, self.batch_size = card, size
        self.description = ", ".join(worker.device for worker in workers)

    def encode(self, windows: Iterator[Window], job: Job, advance: Callable[[int], None]) -> Iterator[WindowFeatures]:
        for worker in self._workers:
            worker.tasks.put((self._number, job))
        faults: list[BaseException] = []
        seen = self._workers[0].done.value
        threading.Thread(target=self._deal, args=(windows, faults), daemon=True).start()
        for worker in cycle(self._workers):
            encoded = worker.result()
            done = worker.done.value
            advance(done - seen)
            seen = done
            if encoded is None:
                break
            yield encoded
        # The turn has come to one that has nothing left, so the others say the same next.
        for other in self._workers:
            if other is not worker:
                other.result()
        if faults:
            raise faults[0]

    def _deal(self, windows: Iterator[Window], faults: list[BaseException]) -> None:
        try:
            for window, worker in zip(windows, cycle(self._workers), strict=False):
                worker.tasks.put(window)
        except BaseException as fault:  # raised again where the results are taken
            faults.append(fault)
        for worker in self._workers:
            worker.tasks.put(None)


@contextmanager
def open_processes(
    specs: Sequence[TeacherSpec], settings: Extract, devices: Sequence[str]
) -> Iterator[list[ProcessEngine]]:
    """Start one process a device, which loads all teachers.

    Raises:
        CusaError: a teacher cannot be loaded, or a device not used.
    """
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    workers: list[_Worker] = []
    try:
        for device in devices:
            tasks, results = context.Queue(_QUEUED), context.Queue(_QUEUED)
            process = context.Process(
                target=_serve,
                args=(specs, settings, device, len(devices), tasks, results, done),
                name=f"encode-{device}",
            )
            process.start()
            workers.append(_Worker(device=device, process=process, tasks=tasks, results=results, done=done))
        agreed = agree([worker.result() for worker in workers])
        yield [ProcessEngine(workers, number, card, size) for number, (card, size) in enumerate(agreed)]
    finally:
        for worker in workers:
            # A window is more than a pipe holds: without this the queue's thread would wait for a reader for ever.
            worker.tasks.cancel_join_thread()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _serve(
    specs: Sequence[TeacherSpec],
    settings: Extract,
    device: str,
    processes: int,
    tasks: Any,
    results: Any,
    done: Any,
) -> None:
    """Be one process: load the teachers, say what they are, then encode windows, one teacher after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends its processes itself, and says one sentence
    end_with_the_parent()
    if device == "cpu":
        torch.set_num_threads(max(1, usable_cores() // processes))

    def advance(rows: int) -> None:
        with done.get_lock():
            done.value += rows

    try:
        use_device(device)
        teachers = [spec.load(device, settings.precision) for spec in specs]
        results.put([(TeacherCard.of(teacher), batch_size(teacher, settings)) for teacher in teachers])
        while True:
            number, job = tasks.get()
            workers = decoding_processes(settings, teachers[number].device, processes)
            encoder = Encoder(teachers[number], job, workers)
            for encoded in encoder.encode(iter(tasks.get, None), advance):
                results.put(encoded)
            results.put(None)
    except CusaError as error:
        results.put(error)
