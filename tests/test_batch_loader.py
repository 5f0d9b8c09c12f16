"""The loader: its processes, when they end, and what comes of a fault in one."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch

from models.batch_loader import BatchLoader
from stores.errors import CusaError, DamagedStoreError

CPU = torch.device("cpu")


def process(draw: int) -> int:
    return os.getpid()


def damaged(draw: int) -> int:
    raise DamagedStoreError(path="train.tar", found=draw, expected=8)


def lost(draw: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return draw


def test_processes_serve_every_pass_and_end_with_the_loader() -> None:
    loader = BatchLoader(process, range(4), 1, CPU)
    assert len({*loader, *loader} - {os.getpid()}) == 1
    del loader
    assert not multiprocessing.active_children()


def test_no_process_outlives_an_error_in_a_pass() -> None:
    with pytest.raises(KeyboardInterrupt) as kept:
        for _ in BatchLoader(process, range(4), 1, CPU):
            raise KeyboardInterrupt
    assert not multiprocessing.active_children(), kept.traceback


@pytest.mark.parametrize("workers", [0, 1], ids=["here", "in-a-process"])
def test_a_fault_is_told_as_it_is(workers: int) -> None:
    with pytest.raises(DamagedStoreError) as told:
        list(BatchLoader(damaged, [5], workers, CPU))
    assert (told.value.path, told.value.found, told.value.message.count("cusa-extract")) == ("train.tar", 5, 1)


def test_what_fails_here_keeps_its_traceback() -> None:
    def of_a_plug_in(draw: int) -> int:
        raise RuntimeError("a plug-in's own")

    with pytest.raises(RuntimeError, match=r"^a plug-in's own$") as told:
        list(BatchLoader(of_a_plug_in, [5], 0, CPU))
    assert told.traceback[-1].name == "of_a_plug_in"


def test_a_lost_process_is_one_sentence() -> None:
    with pytest.raises(CusaError, match=r"^Inputs could not be prepared \(.*\)\. What is finished is kept") as told:
        list(BatchLoader(lost, [5], 1, CPU))
    assert "\n" not in told.value.message
