"""Parameters from params.yaml, command-line flags and recorded runs; a mistake names the nearest known key."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stores.errors import ParameterError
from stores.parameters import SECTIONS, ExtractParameters, TrainParameters

PARAMS_FILE: Final = Path("params.yaml")
P = TypeVar("P", ExtractParameters, TrainParameters)


def load_parameters(
    kind: type[P], path: Path | None = None, flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> P:
    """Load the sections of `kind` from the YAML file at `path`, then apply the flags and overrides.

    Args:
        kind: which sections.
        path: by default ./params.yaml, if it exists.
        flags: values by `section.key`; None keeps the file's.
        overrides: `section.key=value` strings, the value in YAML.

    Raises:
        ParameterError: the file cannot be read, a key is unknown (the message names the nearest) or a value invalid.
    """
    if path is None and PARAMS_FILE.exists():
        path = PARAMS_FILE
    values = _read(path) if path else {}
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, name.split("."), value)
    for override in overrides:
        _set(values, *_parse(override))
    return recorded_parameters(kind, values, str(path) if path else "parameters")


def recorded_parameters(kind: type[P], values: Mapping[str, Any], where: str) -> P:
    """Return the sections of `kind` from plain `values`, such as `as_dict` returns; errors begin with `where`.

    Raises:
        ParameterError: a key is unknown (the message names the nearest) or a value invalid.
    """
    for section in values:
        if section not in SECTIONS:
            raise ParameterError(f"{where}: {section!r} is not a section.{_nearest(section, SECTIONS)}")
    try:
        read = {name: values[name] for name in _names(kind) if values.get(name) is not None}
        # Via JSON: only there does strict validation let a mapping become a dataclass.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(read, default=str))
    except pydantic.ValidationError as error:
        places = {tuple(_location(fault)): fault for fault in reversed(error.errors())}
        faults = [fault | {"msg": _expected(error.errors(), place)} for place, fault in reversed(places.items())]
        raise ParameterError("\n".join(_explain(where, kind, fault) for fault in faults)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"The parameters file {path} cannot be read: {error}.") from None
    except YAMLError as error:
        raise ParameterError(f"{path} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(section, dict | None) for section in values.values()):
        raise ParameterError(f"{path} must map sections ({', '.join(SECTIONS)}) to their keys and values.")
    return values


def _parse(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2:
        raise ParameterError(f"-S {override!r} is not of the form section.key=value, such as loss.alpha=0.1.")
    try:
        return keys, _yaml().load(io.StringIO(text))
    except YAMLError:
        raise ParameterError(f"-S {override!r}: {text!r} is not a YAML value.") from None


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    place = values
    for key in keys[:-1]:
        inner = place.get(key)
        place[key] = dict(inner) if isinstance(inner, dict) else {}
        place = place[key]
    place[keys[-1]] = value


def _yaml() -> YAML:
    # YAML 1.2, in which 1e-4 is a number, as DVC parses it.
    return YAML(typ="safe", pure=True)


def _location(fault: Any) -> list[str]:
    """Return the keys that lead to a fault, without the names of the union members that were tried there."""
    return [str(part) for part in fault["loc"] if not re.fullmatch(r"str|constrained-int|\w+\[.*\]", str(part))]


def _expected(faults: Sequence[Any], place: tuple[str, ...]) -> str:
    """Return the expectations of all union members that were tried at `place`."""
    said = [fault["msg"].removeprefix("Value error, ") for fault in faults if tuple(_location(fault)) == place]
    return ", or ".join(one[:1].lower() + one[1:] for one in said)


def _explain(where: str, kind: type[Any], fault: Any) -> str:
    location = _location(fault)
    name = ".".join(location)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = kind
        for part in location[:-1]:
            owner = get_type_hints(owner)[part]
        return f"{where}: {name} is not a parameter.{_nearest(location[-1], _names(owner))}"
    return f"{where}: {name} is {fault['input']!r}: {fault['msg']}."


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]
