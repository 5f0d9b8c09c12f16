"""What a run of benchmarks has found so far: one JSON, written anew after each figure; a fault loses only its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from stores.atomic import write_json
from stores.ownership import holds, in_the_way


class Record:
    """Figures (dataclasses) in lists of the JSON, beside the machine they are of, and what failed with its message."""

    def __init__(self, path: Path, machine: dict[str, Any], *lists: str) -> None:
        """Begin; a file at `path` that is no record with these lists is a person's, and ends the command."""
        if in_the_way(path.parent, {re.escape(path.name): holds("machine", *lists)}):
            raise SystemExit(f"{path} is not as this command wrote it, and is not overwritten. Move it elsewhere.")
        self._path, self._machine, self._started = path, machine, time.monotonic()
        self._figures: dict[str, list[Any]] = {name: [] for name in lists}
        self._failures: list[dict[str, str]] = []

    def __getitem__(self, name: str) -> list[Any]:
        return self._figures[name]

    def keep(self, name: str, what: str, measure: Callable[[], Iterable[Any]]) -> None:
        """Add what `measure` gives to the list `name`, one by one; if it fails, that is noted under `what`."""
        try:
            for figure in measure():
                self._figures[name].append(figure)
                self._write()
        except Exception as error:  # whatever it is, the measurements after this one are still to come
            self._failures.append({"name": what, "message": f"{type(error).__name__}: {error}"})
            print(f"{what} failed: {self._failures[-1]['message']}", flush=True)
            self._write()
        # Here the error is gone, and with it what its frames held: the next one finds the device's memory free.
        with suppress(RuntimeError):  # the device itself may be lost
            clear_device_cache(garbage_collection=True)

    def finish(self, missed: str = "") -> None:
        """Say where the record lies; exit code 1 says that something failed, or was `missed`, and what."""
        self._write(complete=True)
        print(f"Written to {self._path} after {self._minutes:.1f} min.")
        failed = [f"{failure['name']} failed: {failure['message']}" for failure in self._failures]
        if said := [*([missed] if missed else []), *failed]:
            raise SystemExit("\n".join(said))

    @property
    def _minutes(self) -> float:
        return (time.monotonic() - self._started) / 60

    def _write(self, complete: bool = False) -> None:
        machine = {**self._machine, "minutes": self._minutes}
        figures = {name: [asdict(figure) for figure in kept] for name, kept in self._figures.items()}
        write_json(self._path, {"machine": machine, **figures, "failures": self._failures, "complete": complete})
