"""A user's own model by name: `package.module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores.errors import CusaError


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
