"""One tree of errors: every fault that a user can fix is a `CusaError` with fields, from which its message is made.

They derive from `click.ClickException`, so that each command ends with the message alone and exit code 2.
"""

from __future__ import annotations

from pathlib import Path

import click


class CusaError(click.ClickException):
    """A fault that a user can fix; its message reads "path, where: problem, found …, expected …. advice".

    Fields: the `problem` (the whole message where no other is given), `path` of the file or folder, `where` in it (a
    line's number, or a row or key by name), the value `found`, what was `expected`, and `advice` on what to do. Notes
    (`add_note`) follow the message line by line.
    """

    exit_code = 2
    advice = ""

    def __init__(
        self,
        problem: str = "",
        *,
        path: Path | str = "",
        where: int | str = "",
        found: object = None,
        expected: object = None,
        advice: str = "",
    ) -> None:
        self.problem, self.path, self.where, self.found, self.expected = problem, path, where, found, expected
        self.advice = advice or self.advice
        place = ", ".join(str(part) for part in (path, f"line {where}" if isinstance(where, int) else where) if part)
        shown = f"found {repr(found)[:200]}" if found is not None else ""
        fault = ", ".join(part for part in (problem, shown, f"expected {expected}" if expected else "") if part)
        message = f"{place}: {fault}" if place else fault
        super().__init__(problem if message == problem and not self.advice else f"{message}. {self.advice}".rstrip())

    def format_message(self) -> str:
        """Return what the command line shows."""
        return "\n".join([self.message, *getattr(self, "__notes__", [])])


class ParameterError(CusaError):
    """A parameter (`where`) is unknown, has the wrong type, or contradicts another."""


class SourceError(CusaError):
    """The data set cannot be read."""


class TooManyRejectedError(SourceError):
    """More samples or captions are rejected (`found`) than data.max_bad_fraction (`expected`) allows."""


class TeacherError(CusaError):
    """A teacher cannot be found, loaded, or used."""


class StudentError(CusaError):
    """A student cannot be found, loaded, or used."""


class WeightsError(CusaError):
    """Pretrained weights are absent, or are not the genuine ones."""


class StoreError(CusaError):
    """The store is absent, of another format, or damaged."""


class DamagedStoreError(StoreError):
    """A file of the store (`path`) is absent, cut short or altered."""

    advice = "Run cusa-extract again: it repairs the store."


class TrainingError(CusaError):
    """The training run cannot start, resume, or go on."""


class CheckpointError(TrainingError):
    """A checkpoint (`path`) is absent, damaged, of another format, or of another model."""


class RunFolderError(TrainingError):
    """A run's folder (`path`) holds another run or other files (`where` they differ), or cannot hold a run."""

    advice = "Choose another folder with --run."


class DamagedRunError(TrainingError):
    """A file of a finished run (`path`) is absent, or not as cusa-train wrote it."""

    advice = "Train again with --overwrite."
