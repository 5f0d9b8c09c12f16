"""Taking a run's folder: it is empty, or holds the same run, or another that may be overwritten.

Only files that an earlier run wrote are ever replaced or removed; a person's stay, or the folder is refused by name.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Final

from models.checkpoint import is_our_tensors
from stores.console import console
from stores.errors import TrainingError
from stores.ownership import (
    Kinds,
    holds,
    in_the_way,
    is_our_drawing,
    is_plain,
    is_signed,
    json_object,
    leftovers,
    ours_below,
    remove_leftovers,
    remove_ours,
)
from train.fit.curves import CURVES
from train.fit.run_folder import PLAIN, SOFT

NO_EFFECT: Final = tuple(
    f"train.{name}" for name in ("workers", "cache_gib", "device_table_gib", "save_every", "keep_every", "tensorboard")
)
"""Parameters that change how fast a run is and not what it gives: a stopped run goes on under other ones."""


def claim(folder: Path, wanted: dict[str, Any], overwrite: bool) -> None:
    """See that the run `wanted` (as run.json will have it) may go to `folder`; remove another that lies there.

    Raises:
        TrainingError: it holds another run, which may not be overwritten; or what no run of ours wrote, under the
            name of a file that the run would write; or it is no run's folder at all.
    """
    kinds = run_kinds()
    folder.mkdir(parents=True, exist_ok=True)
    if set(folder.iterdir()) - set(leftovers(folder, kinds)):
        _check_record(folder)
        if names := in_the_way(folder, kinds):
            raise TrainingError(
                f"{folder} holds files where cusa-train writes its own, and not as it wrote them: {', '.join(names)}. "
                f"Move them elsewhere (or delete them, if an older cusa-train made them), or choose another --run."
            )
        _make_room(folder, kinds, _differences(json_object(folder / "run.json"), wanted), overwrite)
    remove_leftovers(folder, kinds)


def _check_record(folder: Path) -> None:
    record = folder / "run.json"
    if not (is_plain(record) and holds("parameters", "data", "mixed_in", "versions")(record)):
        raise TrainingError(f"{folder} is not empty and holds no run of ours. Choose another folder with --run.")


def _make_room(folder: Path, kinds: Kinds, changed: list[str], overwrite: bool) -> None:
    """Remove another run, if it may be, but for run.json: it says whose the folder is until the new one replaces it."""
    # A run that was refused before its first checkpoint keeps no one from the folder.
    if not changed or not any(path.suffix == ".safetensors" for path in ours_below(folder, kinds)):
        return
    if not overwrite:
        raise TrainingError(
            f"{folder} holds a run that differs in {', '.join(changed)}. "
            f"Choose another folder with --run, or say --overwrite."
        )
    remove_ours(folder, {pattern: test for pattern, test in kinds.items() if pattern != r"run\.json"})
    if left := sorted(path.name for path in folder.iterdir() if path.name != "run.json"):
        console.print(f"{folder}: the earlier run is removed; what it did not write stays: {', '.join(left)}")


def run_kinds() -> Kinds:
    """Return every file that a run writes, and how each shows that it did."""
    kinds: dict[str, Callable[[Path], bool]] = {
        r"run\.json": holds("parameters", "versions"),
        r"environment\.json": holds("starts"),
        r"metrics\.json": lambda path: bool(json_object(path)) and json_object(path).keys() <= {PLAIN, SOFT},
        r"report\.html": is_signed,
        r"plots/curves\.png": is_our_drawing,
    }
    for training in ("", f"{PLAIN}/"):
        kinds |= {
            rf"{training}README\.md": is_signed,
            rf"{training}epochs\.csv": _is_epochs,
            rf"{training}(best|last|student|epoch-\d{{3,}})\.safetensors": is_our_tensors,
            **{training + pattern: test for pattern, test in CURVES.items()},
        }
    return kinds


def _is_epochs(path: Path) -> bool:
    """Tell whether a table is one row of numbers an epoch; a column of remarks is a person's."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            names, *rows = csv.reader(stream)
        for cell in chain.from_iterable(rows):
            float(cell or 0)
    except (OSError, ValueError, csv.Error):
        return False
    return names[0] == "epoch" and all(len(row) == len(names) for row in rows)


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Return what is not the same in two run.json, but for what changes no result."""
    if name.removeprefix("parameters.") in NO_EFFECT:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))]
    return [] if found == wanted else [f"{name.removeprefix('parameters.')} ({found} → {wanted})"]
