"""Parameters from params.yaml, command-line flags and recorded runs; a mistake names the nearest known key."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stores.errors import ParameterError
from stores.parameters import SECTIONS, ExtractParameters, TrainParameters

PARAMS_FILE: Final = Path("params.yaml")
P = TypeVar("P", ExtractParameters, TrainParameters)


def load_parameters(
    kind: type[P],
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> P:
    """Load the sections of `kind` from the YAML file at `path` (or ./params.yaml), then apply flags and overrides.

    Values `recorded` by an earlier run stand in for ./params.yaml.

    Flags are values by `section.key`, of which None keeps the file's; overrides `section.key=value`, the value in YAML.

    Raises:
        ParameterError: the file cannot be read, a key is unknown (the message names the nearest) or a value invalid.
    """
    if path is None and recorded is None and PARAMS_FILE.exists():
        path = PARAMS_FILE
    values = _read(path) if path else dict(recorded or {})
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, name.split("."), value)
    for override in overrides:
        _set(values, *_parse(override))
    given = [name for name, value in (flags or {}).items() if value is not None]
    given += [override.partition("=")[0].strip() for override in overrides]
    try:
        return recorded_parameters(kind, values, path or "parameters")
    except ParameterError as error:
        raise error if path is None else _said_where(error, path, given) from None


def recorded_parameters(kind: type[P], values: Mapping[str, Any], path: Path | str) -> P:
    """Return the sections of `kind` from plain `values`, such as `as_dict` returns, recorded in the file `path`.

    Raises:
        ParameterError: a key is unknown (the message names the nearest) or a value invalid. Of
            several faults it is the first, the others are its notes.
    """
    for section in values:
        if section not in SECTIONS:
            raise _unknown(path, section, section, SECTIONS)
    try:
        read = {name: values[name] for name in _names(kind) if values.get(name) is not None}
        # Via JSON: only there does strict validation let a mapping become a dataclass.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(read, default=str))
    except pydantic.ValidationError as error:
        first, *others = [_fault(path, kind, place, error) for place in dict.fromkeys(map(_location, error.errors()))]
        for other in others:
            first.add_note(other.message)
        raise first from None


def _said_where(error: ParameterError, path: Path, given: Sequence[str]) -> ParameterError:
    """Return a fault, and its notes, without the parameters file wherever a flag or -S is at fault."""

    def by_hand(where: str) -> bool:
        return any(f"{where}.".startswith(f"{name}.") or f"{name}.".startswith(f"{where}.") for name in given)

    said = ParameterError(
        error.problem,
        path="" if by_hand(str(error.where)) else error.path,
        where=error.where,
        found=error.found,
        expected=error.expected,
        advice=error.advice,
    )
    for note in getattr(error, "__notes__", []):
        place, _, rest = note.removeprefix(f"{path}, ").partition(":")
        said.add_note(f"{place}:{rest}" if by_hand(place) else note)
    return said


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot be read ({error})", path=path) from None
    except YAMLError as error:
        raise ParameterError(f"{error}", path=path, expected="YAML") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(section, dict | None) for section in values.values()):
        raise ParameterError(path=path, found=values, expected=f"the sections {', '.join(SECTIONS)}, each a mapping")
    return values


def _parse(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2:
        raise ParameterError(where="-S", found=override, expected="section.key=value, such as loss.alpha=0.1")
    try:
        return keys, _yaml().load(io.StringIO(text))
    except YAMLError:
        raise ParameterError(where=f"-S {path.strip()}", found=text, expected="a YAML value") from None


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


def _location(fault: Any) -> tuple[str, ...]:
    """Return the keys that lead to a fault, without the names of the union members that were tried there."""
    inner = r"str|constrained-int|\w*\[.*\]"
    return tuple(str(part) for part in fault["loc"] if not re.fullmatch(inner, str(part)))


def _fault(
    path: Path | str, kind: type[Any], place: tuple[str, ...], error: pydantic.ValidationError
) -> ParameterError:
    """Return what is wrong at `place`: an unknown key, or a value that no member of its union accepts."""
    name, tried = ".".join(place), [fault for fault in error.errors() if _location(fault) == place]
    if tried[0]["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = kind
        for part in place[:-1]:
            # Of a mapping, such as data.features, the part is a name of the user's own.
            owner = get_args(owner)[1] if get_origin(owner) is dict else get_type_hints(owner)[part]
            if get_origin(owner) is not dict:
                owner = next((one for one in get_args(owner) if is_dataclass(one)), owner)  # of what may be null
        return _unknown(path, name, place[-1], _names(owner))
    if tried[0]["type"] == "missing":
        return ParameterError("missing, and needed", path=path, where=name)
    wanted = [re.sub(r"^(Value error, expected|Input should be|\w+ should( have)?) ", "", one["msg"]) for one in tried]
    wanted = [{"an object": "a mapping", "a valid array": "a list"}.get(one, one) for one in wanted]
    return ParameterError(path=path, where=name, found=tried[0]["input"], expected=", or ".join(wanted))


def _unknown(path: Path | str, where: str, name: str, known: Iterable[str]) -> ParameterError:
    close = difflib.get_close_matches(name, list(known), n=1)
    advice = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
    return ParameterError("unknown parameter", path=path, where=where, advice=advice)


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]
