"""A run's folder explains itself: README.md says what was trained and how far it is, epochs.csv has all figures.

Both are rewritten after each epoch and at the end.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

from stores.ownership import write_signed
from stores.pages import rendered
from stores.parameters import Loss, Sgraf, Student, TrainParameters
from train.fit.environment import command_line
from train.fit.epoch import Epoch, write_epochs
from train.losses.objective import described

SOFT: Final = "soft_labels"
ORIGINALS: Final = ("infonce", "hinge", "pcmc", "pcmr", "original")
"""What a training with the student's original loss alone may be called; beside the other it lies in a folder of this
name."""


def title_of(loss: Loss) -> str:
    """Return what a training with this loss is called."""
    if loss != alone(loss):
        return SOFT
    return loss.original if loss.original in ORIGINALS else ORIGINALS[-1]


def alone(loss: Loss) -> Loss:
    """Return a loss without its soft labels: the student's original one, and what else was added to it."""
    return replace(loss, alpha=0.0, beta=0.0, matching=replace(loss.matching, soft_negatives=0.0))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run's page says about a training besides its figures."""

    title: str
    parameters: TrainParameters
    """With the loss of this very training."""
    store: Path
    """As the user named it."""
    fingerprint: str
    """Of the store's data."""
    data: str
    """What an epoch is, in words: pairs, steps, what is left out."""
    device: str
    precision: str
    processes: int


def _as_loaded(student: Student, weights: Path) -> Student:
    """Return the settings by which a run's student is loaded again: one that tells all of itself, from its file."""
    family, _, name = student.model.partition(":")
    own = replace(student, freeze=[], weights=None, gradient_checkpointing=False)
    if family == "sgraf":
        sgraf = Sgraf(regions=student.sgraf.regions)
        return replace(own, model=f"sgraf:{name.partition('/')[0]}/{weights}", sgraf=sgraf)
    return own


def _code(value: Any) -> str:
    """Return what makes a value, with what is not as it is by itself."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = type(value)()
        given = [(one.name, getattr(value, one.name)) for one in fields(value)]
        said = [f"{name}={_code(held)}" for name, held in given if held != getattr(plain, name)]
        return f"{type(value).__name__}({', '.join(said)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_code(key)}: {_code(held)}' for key, held in value.items())}}}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def describe(folder: Path, facts: Facts, history: Sequence[Epoch], measured: Mapping[str, Any] | None = None) -> None:
    """Write `folder`/epochs.csv of the finished epochs and, after it, the page `folder`/README.md.

    `measured` are the figures on the test split, as metrics.json has them for this training, once there are any.
    """
    write_epochs(folder / "epochs.csv", history)
    student = _as_loaded(facts.parameters.student, folder / "student.safetensors")
    # An RSUM that is no number is no best one.
    best = max(history, key=lambda e: -math.inf if math.isnan(e.validation_rsum) else e.validation_rsum, default=None)
    roles = {"first": history[0], "best": best, "last": history[-1]} if best else {}
    once = {e.epoch: e for e in roles.values()}.values()
    page = rendered(
        Path(__file__).with_name("README.md.jinja"),
        folder=folder,
        facts=facts,
        parameters=facts.parameters,
        loss=described(facts.parameters.loss),
        history=history,
        best=best,
        shown=[(e, [role for role, of_role in roles.items() if of_role is e]) for e in once],
        measured=measured,
        ways=[name for name in measured or () if "_to_" in name],
        student=_code(student),
        classes=sorted(set(re.findall(r"\b([A-Z]\w*)\(", _code(student)))),
        originals=ORIGINALS,
        command=command_line(),
        has=lambda name: any(folder.glob(name.rstrip("/"))),
        quoted=lambda path: shlex.quote(str(path)),
        written=lambda path: json.dumps(str(path), ensure_ascii=False),
    )
    write_signed(folder / "README.md", page)
