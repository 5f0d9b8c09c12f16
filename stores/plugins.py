"""A user's own model by name: `package.module:factory`.

A store and a run record such names. What came from strangers must not bring the code along that its record names, so
there a module is taken only from elsewhere (`recorded_in`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from stores.errors import CusaError

_FOLDER: Final = ContextVar[Path | None]("the folder whose record names factories", default=None)


@contextmanager
def recorded_in(folder: Path | None) -> Iterator[None]:
    """While the block runs, names are a folder's record; None: a person's, whose code may lie anywhere."""
    token = _FOLDER.set(None if folder is None else folder.resolve())
    try:
        yield
    finally:
        _FOLDER.reset(token)


def record() -> Path | None:
    """Return the folder whose record names factories now; None: a person does."""
    return _FOLDER.get()


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
        what: the module or the factory does not exist, or cannot be imported; or a folder's record names code that
            came with the folder, or Python's own.
    """
    module_name, _, factory_name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    _check_elsewhere(spec, module_name.partition(".")[0], what)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise what(f"{spec!r}: the module {module_name} cannot be imported ({error}).") from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise what(f"{spec!r}: {module_name} has nothing callable named {factory_name!r}.")
    found: Callable[..., Any] = factory
    return found


def _check_elsewhere(spec: str, top: str, what: type[CusaError]) -> None:
    folder = record()
    if folder is None:
        return
    found = None
    with suppress(ValueError):  # of __main__
        found = importlib.util.find_spec(top)  # of the outermost package, which runs nothing
    origin = [found.origin] if found and found.origin else []
    places = [Path(place).resolve() for place in (*origin, *((found and found.submodule_search_locations) or ()))]
    inside = any(folder.is_relative_to(place) or place.is_relative_to(folder) for place in places)
    if inside or top in sys.stdlib_module_names:
        whose = f"in {places[0]}, beside the files that name it" if inside else "of Python itself"
        raise what(
            f"is code {whose}; what a store or a run records is never run from there",
            where=spec,
            path=folder,
            advice="If it is your own, keep it outside that folder, as a module of the working folder or installed.",
        )
