"""What tests expect of an error: its very type, and fields; how it is worded is held by test_errors alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stores import CusaError


@contextmanager
def refused(kind: type[CusaError], **fields: Any) -> Iterator[pytest.ExceptionInfo[CusaError]]:
    """Expect an error of the type `kind`, not of one below it, with these fields."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert (type(error), {name: getattr(error, name) for name in fields}) == (kind, fields)
