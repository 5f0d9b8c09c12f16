"""What measuring a model on a task gives: figures, what they rest on, and what a reader must know about them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stores.errors import CusaError
from train.evaluation.paper import AVERAGE

TASKS: Final = ("retrieval", "eccv", "image-retrieval", "sts")


class DataSetError(CusaError):
    """A data set of a task is absent, incomplete or broken; the task's other data sets are measured all the same."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A model's figures on one task; `dataclasses.asdict` makes it JSON."""

    task: str
    model: str
    figures: dict[str, Any] = field(default_factory=dict)
    """By data set, such as "CUB-200-2011" or "average": in percent, or × 100; several figures of one data set nest by
    their names. A data set that is absent has none."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By data set: how many images, classes, pairs … the figure rests on."""
    messages: list[str] = field(default_factory=list)
    """What is missing, broken, left out or unlike the published data; each names its data set."""

    def add_average(self) -> None:
        """Add the mean of the figures so far.

        Without messages all data sets are as published, and the mean compares with the paper's average; otherwise it
        has a name of its own, for which the paper has no figure.
        """
        name = "average of these" if self.messages else AVERAGE
        self.figures[name] = float(np.mean(list(self.figures.values())))


class Evaluation(NamedTuple):
    """What was measured, and with what."""

    models: Sequence[str]
    """As they were named, in that order."""
    store: Path
    split: str
    device: str
    precision: str
    results: list[Result]
    """One for each model and task, as they are measured."""


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a unique name for each of the `models`, for headings: paths without the folders that they share."""
    paths = {model: Path(model).absolute() for model in models if Path(model).exists()}
    shared = os.path.commonpath([path.parent for path in paths.values()]) if paths else ""
    names = {model: os.path.relpath(paths[model], shared) if model in paths else _pretrained(model) for model in models}
    return names if len(set(names.values())) == len(models) else {model: model for model in models}


def _pretrained(model: str) -> str:
    """Return the name of a model that is no path itself, with the last part of a weights file's path."""
    name, _, weights = model.partition("/")
    return f"{name}/{Path(weights).name}" if Path(weights).is_file() else model
