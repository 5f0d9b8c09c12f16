"""Claiming a run's folder: it is empty, holds the same run, or another that may be overwritten.

Only files that an earlier run wrote are ever replaced or removed; a person's stay, or the folder is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from models.checkpoint import is_our_tensors
from stores.clean import is_clean_column
from stores.console import console
from stores.errors import DamagedRunError, RunFolderError
from stores.layout import Layout
from stores.ownership import (
    Kinds,
    in_the_way,
    is_our_drawing,
    is_plain,
    is_signed,
    json_object,
    leftovers,
    ours_below,
    remove_ours,
)
from train.evaluation.folder import DEPTHS, SCORES
from train.fit.curves import CURVES
from train.fit.epoch import read_epochs
from train.fit.run_folder import ORIGINALS, SOFT

NO_EFFECT: Final = tuple(
    f"train.{name}" for name in ("workers", "cache_gib", "device_table_gib", "save_every", "keep_every", "tensorboard")
)
"""Parameters that change how fast a run is and not what it gives: a stopped run may resume with other values."""
BEST: Final = "best.safetensors"
_RESULTS: Final = ("metrics.json", "epochs.csv", BEST, "last.safetensors")
_SHOWN: Final = 60
"""Characters of a value that differs, at most."""
_IDENTITY: Final = {"parameters", "data", "mixed_in", "versions"}
"""What run.json says."""


def replaces_another(folder: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether the run `wanted` (as run.json will have it) would take the place of another in `folder`.

    Raises:
        RunFolderError: it holds another run, which may not be overwritten; or what no run of ours wrote, under the
            name of a file that the run would write; or it is no run's folder at all; or it lies within a store.
    """
    kinds = run_kinds()
    if folder.exists() and not folder.is_dir():
        raise RunFolderError("is a file", path=folder)
    place = folder.resolve()
    if store := next((above for above in (place, *place.parents) if Layout(above).mark.is_file()), None):
        raise RunFolderError(f"lies within the store {store}", path=folder)
    if not folder.exists() or not set(folder.iterdir()) - set(leftovers(folder, kinds)):
        return False
    if not (is_plain(folder / "run.json") and json_object(folder / "run.json").keys() >= _IDENTITY):
        raise RunFolderError("is not empty and holds no run of cusa-train", path=folder)
    if names := in_the_way(folder, kinds):
        advice = "Move them elsewhere (or delete them, if an older cusa-train made them), or choose another --run."
        raise RunFolderError("not as cusa-train wrote it", path=folder, where=", ".join(names), advice=advice)
    changed = _differences(json_object(folder / "run.json"), wanted)
    lost = [str(place) for place in (folder, *(folder / title for title in ORIGINALS)) if _lacks_its_best(place)]
    # A run that was refused before it trained does not block the folder.
    if not lost and not (changed and any(path.name in _RESULTS for path in ours_below(folder, kinds))):
        return False
    if not overwrite:
        advice = "Choose another folder with --run, or say --overwrite."
        if changed:
            raise RunFolderError("holds another run", path=folder, where=", ".join(changed), advice=advice)
        raise RunFolderError("absent, so the run cannot resume", path=lost[0], where=BEST, advice=advice)
    return True


def make_room(folder: Path) -> None:
    """Remove the run that lies in a folder, but for run.json: it says whose the folder is until another replaces it."""
    remove_ours(folder, {pattern: test for pattern, test in run_kinds().items() if pattern != r"run\.json"})
    if left := sorted(path.name for path in folder.iterdir() if path.name != "run.json"):
        console.print(f"{folder}: the earlier run is removed; what it did not write stays: {', '.join(left)}")


def _lacks_its_best(training: Path) -> bool:
    """Tell whether a training has finished an epoch but lacks the weights of its best."""
    epochs = training / "epochs.csv"
    has_finished = epochs.is_file() and len(epochs.read_bytes().splitlines()) > 1
    return has_finished and not (training / BEST).is_file()


def run_kinds() -> Kinds:
    """Return every file that a run writes, and how each shows that it did."""
    kinds: dict[str, Callable[[Path], bool]] = {
        r"run\.json": lambda path: json_object(path).keys() == _IDENTITY,
        r"environment\.json": lambda path: json_object(path).keys() == {"starts"},
        r"metrics\.json": lambda path: bool(json_object(path)) and json_object(path).keys() <= {*ORIGINALS, SOFT},
        r"report\.html": is_signed,
        r"plots/curves\.png": is_our_drawing,
        **DEPTHS,
    }
    for training in ("", *(f"{title}/" for title in ORIGINALS)):
        kinds |= {
            rf"{training}README\.md": is_signed,
            rf"{training}epochs\.csv": _is_epochs,
            rf"{training}clean\.arrow": is_clean_column,
            rf"{training}vocabulary\.json": lambda path: "word2idx" in json_object(path),
            rf"{training}(best|last|student|epoch-\d{{3,}})\.safetensors": is_our_tensors,
            **{training + pattern: test for pattern, test in {**CURVES, **SCORES}.items()},
        }
    return kinds


def _is_epochs(path: Path) -> bool:
    """Tell whether a table is one row of numbers per epoch; a column of remarks is a person's."""
    try:
        read_epochs(path)
    except DamagedRunError:
        return False
    return True


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Return what is not the same in two run.json, but for what changes no result."""
    if name.removeprefix("parameters.") in NO_EFFECT:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))]
    if found == wanted:
        return []
    told = str(found), str(wanted)
    # Long ones from a little before where they part.
    parts = next((place for place, (a, b) in enumerate(zip(*told, strict=False)) if a != b), 0)
    start = max(0, parts - _SHOWN // 4) if max(map(len, told)) > _SHOWN else 0
    change = " → ".join(f"{'…' * bool(start)}{value[start : start + _SHOWN]}" for value in told)
    return [f"{name.removeprefix('parameters.')} ({change})"]
