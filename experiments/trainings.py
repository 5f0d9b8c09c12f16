"""Trainings to compare, side by side: in parallel on shares of a CPU's cores, one after another on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from stores import Store, TrainingError, TrainParameters
from stores.commands import end_with_the_parent
from stores.console import console, progress_bar
from stores.hardware import resolve_device
from train.run import run


def train_all(
    trials: Mapping[str, TrainParameters], store: Path, work: Path, at_once: int | None = None
) -> dict[str, dict[str, Any]]:
    """Run every trial in `work`/<its name>, going on where an earlier call was stopped.

    Like a stage of DVC, it repeats what other parameters, data or code had produced. At most `at_once` run side by
    side, where memory sets a limit.

    Returns:
        By name, what metrics.json says of the trial's one training.

    Raises:
        CusaError: a trial cannot be run; those that are finished are kept.
    """
    device = resolve_device(next(iter(trials.values())).train.device)
    cores = torch.get_num_threads()
    jobs = min(cores, len(trials), at_once or cores) if device.type == "cpu" else 1
    with (
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (max(1, cores // jobs),)) as pool,
        progress_bar() as bar,
    ):
        task = bar.add_task("trainings", total=len(trials), note="")
        names = {pool.submit(_trial, parameters, store, work / name): name for name, parameters in trials.items()}
        found = {}
        try:
            for future in as_completed(names):
                name, figures = names[future], future.result()
                found[name] = figures
                bar.update(task, advance=1)
                console.print(
                    f"{len(found)} of {len(trials)}: {name}, validation RSUM {figures['validation_RSUM']:.1f}"
                )
        except BrokenProcessPool:
            raise TrainingError(
                "A training was killed, perhaps for lack of memory. What is finished is kept; run the command again."
            ) from None
        except BaseException:
            # Trainings resume from their last checkpoints, so they can be killed at once.
            for process in active_children():
                process.kill()
            raise
    return {name: found[name] for name in trials}


def _begin(threads: int) -> None:
    """Prepare a process of the pool: its share of the cores, no output of its own, and an end when its parent ends."""
    console.quiet = True
    torch.set_num_threads(threads)
    end_with_the_parent()


def _trial(parameters: TrainParameters, store: Path, folder: Path) -> dict[str, Any]:
    (measured,) = run(parameters, Store.open(store), folder, overwrite=True).values()
    found: dict[str, Any] = measured
    return found
