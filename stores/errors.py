"""One tree of errors: every user-facing fault is a `CusaError`, whose message says what was found and what to do.

They derive from `click.ClickException`, so that each command ends with the message alone and exit code 2.
"""

from __future__ import annotations

import click


class CusaError(click.ClickException):
    """A fault that the person at the keyboard can mend."""

    exit_code = 2


class ParameterError(CusaError):
    """A parameter is unknown, has the wrong type, or contradicts another."""


class SourceError(CusaError):
    """The data set cannot be read, or too much of it is bad."""


class TeacherError(CusaError):
    """A teacher cannot be found, loaded, or used."""


class StudentError(CusaError):
    """A student cannot be found, loaded, or used."""


class StoreError(CusaError):
    """The store is absent, of another format, or damaged."""


class TrainingError(CusaError):
    """The training run cannot start, resume, or go on."""
