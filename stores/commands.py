"""What our commands share: an interrupt ends with one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def resumable() -> Iterator[None]:
    """Turn Ctrl-C into a word on how to go on, and the exit code 130 that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Stopped. Run the same command again to go on from what is finished.", err=True)
        sys.exit(130)
