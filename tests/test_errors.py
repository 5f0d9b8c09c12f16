"""Errors: the wording of each type, made from its fields; they travel between processes; what commands show."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from stores import CusaError, ParameterError, SourceError, StoreError, StudentError, TeacherError, TrainingError
from stores.errors import (
    CheckpointError,
    DamagedRunError,
    DamagedStoreError,
    RunFolderError,
    TooManyRejectedError,
    WeightsError,
)

STORE, RUN = Path("store"), Path("run")
WORDED: list[tuple[CusaError, str]] = [
    (CusaError("A sentence of its own."), "A sentence of its own."),
    (
        ParameterError(path="params.yaml", where="loss.alpha", found="x", expected="a valid number"),
        "params.yaml, loss.alpha: found 'x', expected a valid number.",
    ),
    (SourceError("empty", path="a.csv", where=3, expected="a caption"), "a.csv, line 3: empty, expected a caption."),
    (
        TooManyRejectedError(path="q.jsonl", where="captions", found=7, expected="at most 5% of 90"),
        "q.jsonl, captions: found 7, expected at most 5% of 90.",
    ),
    (TeacherError("sha256", found="0f", expected="1e", advice="Get it."), "sha256, found '0f', expected 1e. Get it."),
    (WeightsError("no such file", path="a.pth", advice="Get it."), "a.pth: no such file. Get it."),
    (StudentError(found=(2, 3), expected=(2, 4)), "found (2, 3), expected (2, 4)."),
    (StoreError(path=STORE, found=[], expected="one", advice="Name one."), "store: found [], expected one. Name one."),
    (
        DamagedStoreError("cannot be read (gone)", path=STORE / "samples.arrow"),
        "store/samples.arrow: cannot be read (gone). Run cusa-extract again: it repairs the store.",
    ),
    (
        TrainingError(where="train.mix_in", found=0, expected="1 at least"),
        "train.mix_in: found 0, expected 1 at least.",
    ),
    (
        CheckpointError(path=RUN / "last.safetensors", where="format", found=2, expected=3, advice="Train again."),
        "run/last.safetensors, format: found 2, expected 3. Train again.",
    ),
    (RunFolderError("is a file", path=RUN), "run: is a file. Choose another folder with --run."),
    (
        DamagedRunError(path=RUN / "run.json", expected="a record"),
        "run/run.json: expected a record. Train again with --overwrite.",
    ),
]
IDS = [type(error).__name__ for error, _ in WORDED]


def types_below(kind: type[CusaError]) -> set[type[CusaError]]:
    return {kind}.union(*(types_below(inner) for inner in kind.__subclasses__()))


def test_each_type_of_the_tree_has_its_wording_held_here() -> None:
    assert {type(error) for error, _ in WORDED} == {
        kind for kind in types_below(CusaError) if kind.__module__ == "stores.errors"
    }


@pytest.mark.parametrize(("error", "message"), WORDED, ids=IDS)
def test_the_message_is_made_from_the_fields(error: CusaError, message: str) -> None:
    assert (error.message, error.format_message(), error.exit_code) == (message, message, 2)


@pytest.mark.parametrize(("error", "message"), WORDED, ids=IDS)
def test_type_and_fields_travel_between_processes(error: CusaError, message: str) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), vars(there), there.message) == (type(error), vars(error), message)


def test_a_value_of_any_length_is_shown_in_part_and_kept_whole() -> None:
    error = ParameterError(where="data.source", found="x" * 10_000, expected="a path")
    assert len(error.message) < 300
    assert error.found == "x" * 10_000


def test_notes_follow_the_message_line_by_line() -> None:
    error = ParameterError("unknown parameter", where="loss.alpa")
    error.add_note("loss.bta: unknown parameter.")
    assert error.format_message() == "loss.alpa: unknown parameter.\nloss.bta: unknown parameter."
