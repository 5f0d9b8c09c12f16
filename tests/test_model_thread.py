"""The thread that owns the models: what many ask for at once is one batch, and a fault is its own request's alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_teachers
import torch

from models.teachers import Teacher
from pipeline.serve.model_thread import BATCH, WAITING, Busy, ModelThread, ServedTower
from stores import TeacherError


class Picky(tiny_teachers.Counting):
    """Refuses batches with a text of q."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if batch[:, 16].any():
            raise RuntimeError("no q")
        return super().forward(batch)


@pytest.fixture
def models() -> Iterator[ModelThread]:
    thread = ModelThread()
    yield thread
    thread.close()


def picky() -> Teacher:
    return Picky(spec="picky", dim=26, precision="fp32", device=torch.device("cpu"), identity=None)


async def together(models: ModelThread, tower: ServedTower, texts: list[str], gate: threading.Event) -> list[Any]:
    """Ask for all texts while the tower is still being loaded."""
    asked = [asyncio.ensure_future(models.encode(tower, text)) for text in texts]
    await asyncio.sleep(0.05)
    gate.set()
    return await asyncio.gather(*asked, return_exceptions=True)


def gated(load: Any) -> tuple[ServedTower, threading.Event]:
    gate = threading.Event()

    def loaded() -> Teacher:
        gate.wait(30)
        teacher: Teacher = load()
        return teacher

    return ServedTower(slug="picky", fingerprint=picky().fingerprint, load=loaded), gate


def test_what_comes_at_once_is_one_batch(models: ModelThread) -> None:
    tower, gate = gated(picky)
    Picky.seen.clear()
    texts = [letter * 3 + "z" for letter in "abcdefgh"]
    found = asyncio.run(together(models, tower, texts, gate))
    assert (sum(Picky.seen), len(Picky.seen) <= 2) == (8, True), "the first, and those that came while it was loaded"
    for letter, vector in zip("abcdefgh", found, strict=True):
        expected = np.zeros(26)
        expected[ord(letter) - ord("a")], expected[25] = 3, 1
        np.testing.assert_allclose(vector, expected / np.sqrt(10), atol=1e-6)


def test_one_that_fails_costs_no_other_its_answer(models: ModelThread) -> None:
    tower, gate = gated(picky)
    found = asyncio.run(together(models, tower, ["a", "b", "q", "d"], gate))
    assert [type(one) for one in found] == [np.ndarray, np.ndarray, RuntimeError, np.ndarray]


def test_a_model_that_cannot_be_loaded_is_told_to_all_and_tried_again(models: ModelThread) -> None:
    tries = []

    def load() -> Teacher:
        tries.append(1)
        if len(tries) == 1:
            raise TeacherError("not today")
        return picky()

    tower, gate = gated(load)
    assert isinstance(asyncio.run(together(models, tower, ["a"], gate))[0], TeacherError)
    assert asyncio.run(together(models, tower, ["a"], gate))[0][0] == 1


def test_more_than_can_wait_are_refused(models: ModelThread) -> None:
    tower, gate = gated(picky)
    found = asyncio.run(together(models, tower, ["a"] * (WAITING + BATCH + 5), gate))
    refused = sum(isinstance(one, Busy) for one in found)
    assert 5 <= refused <= BATCH + 5
