"""A user's own model by name: `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stores.errors import CusaError


def made_by_factory(spec: str, what: type[CusaError]) -> Any:
    """Return what `package.module:factory` makes, which is called without arguments.

    Raises:
        what: there is no such factory, or it needs arguments.
    """
    factory = import_factory(spec, what)
    with suppress(ValueError):  # of what has no signature
        try:
            inspect.signature(factory).bind()
        except TypeError as error:
            raise what(f"{spec!r} is called without arguments, and cannot be ({error}).") from None
    return factory()


def import_factory(spec: str, what: type[CusaError]) -> Callable[..., Any]:
    """Return the callable that `package.module:factory` names, looking in the working folder too.

    Raises:
        what: the module or the factory does not exist, or cannot be imported.
    """
    module_name, _, factory_name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise what(f"{spec!r}: the module {module_name} cannot be imported ({error}).") from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise what(f"{spec!r}: {module_name} has nothing callable named {factory_name!r}.")
    found: Callable[..., Any] = factory
    return found
