"""One thread owns the models: what many ask for at once is encoded in one batch.

A request waits for the batch before it and no longer; while that is computed, further ones gather.

Shapes: D a feature's dimensions.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.teachers import Teacher
from pipeline.inspection.teachers import encode_prepared
from stores import CusaError

BATCH: Final = 64
WAITING: Final = 512
"""Requests that may wait; more are refused."""
LAST_SECONDS: Final = 3.0


class Busy(CusaError):
    """More is asked for than can wait."""


@dataclass(frozen=True, kw_only=True)
class ServedTower:
    """One tower of a model, as the store's features name it, and how it is loaded."""

    slug: str
    fingerprint: str
    load: Callable[[], Teacher]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    tower: ServedTower
    item: Any
    """A text, or an image as the tower prepared it; None: the tower itself is asked for."""
    result: Future[Any]


class ModelThread:
    """Loads towers when they are first asked for, and encodes on its own thread."""

    def __init__(self) -> None:
        self._waiting: list[_Request] = []
        self._closed = False
        self._arrived = threading.Condition()
        self._teachers: dict[str, Teacher] = {}
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    async def teacher(self, tower: ServedTower) -> Teacher:
        """Return a tower, loaded if it is not yet.

        Raises:
            CusaError: it cannot be loaded.
            Busy: too many wait.
        """
        loaded: Teacher = self._held(tower) or await self._asked(tower, None)
        return loaded

    async def encode(self, tower: ServedTower, item: Any) -> NDArray[np.float32]:
        """Return the L2-normalised feature (D,) of a text, or of an image as the tower prepared it.

        Raises:
            CusaError: the tower cannot be loaded, or cannot encode this.
            Busy: too many wait.
        """
        vector: NDArray[np.float32] = await self._asked(tower, item)
        if not vector.any():
            raise CusaError("The model makes nothing of this. Try another.")
        return vector

    def close(self) -> None:
        """End the thread when what is at work is done, or after `LAST_SECONDS`: a large model takes long to load."""
        with self._arrived:
            self._closed = True
            self._waiting.clear()
            self._arrived.notify()
        self._thread.join(LAST_SECONDS)

    async def _asked(self, tower: ServedTower, item: Any) -> Any:
        request = _Request(tower=tower, item=item, result=Future())
        with self._arrived:
            if len(self._waiting) >= WAITING:
                raise Busy(f"{WAITING} requests wait already. Ask again in a moment.")
            self._waiting.append(request)
            self._arrived.notify()
        return await asyncio.wrap_future(request.result)

    def _held(self, tower: ServedTower) -> Teacher | None:
        """Return a tower that is loaded, and still the one that made the store's features."""
        held = self._teachers.get(tower.slug)
        return held if held is not None and held.fingerprint == tower.fingerprint else None

    def _run(self) -> None:
        while batch := self._batch():
            self._answer([request for request in batch if request.result.set_running_or_notify_cancel()])

    def _batch(self) -> list[_Request]:
        """Wait for requests, and return those that are for the tower of the first; none when all is done."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._closed)
            batch = [one for one in self._waiting if one.tower.slug == self._waiting[0].tower.slug][:BATCH]
            self._waiting = [one for one in self._waiting if one not in batch]
            return batch

    def _answer(self, batch: list[_Request]) -> None:
        if not batch:
            return
        try:
            teacher = self._loaded(batch[0].tower)
            items = [request.item for request in batch if request.item is not None]
            features = iter(_encoded(teacher, items))
        except Exception as error:  # whatever a user's model raises
            if len(batch) == 1 or self._held(batch[0].tower) is None:
                for request in batch:
                    request.result.set_exception(error)
                return
            # One that cannot be encoded costs no other its answer.
            for request in batch:
                self._answer([request])
            return
        for request in batch:
            request.result.set_result(teacher if request.item is None else next(features))

    def _loaded(self, tower: ServedTower) -> Teacher:
        teacher = self._held(tower)
        if teacher is None:
            teacher = self._teachers[tower.slug] = tower.load()
        return teacher


def _encoded(teacher: Teacher, items: list[Any]) -> NDArray[np.float32]:
    if not items:
        return np.empty((0, teacher.dim), np.float32)
    return encode_prepared(teacher, teacher.prepare(items) if teacher.modality == "text" else items)
