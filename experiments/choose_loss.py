"""Choose τ_P, α and β on the validation split, one after the other (docs/results.md).

`python -m experiments.choose_loss` trains the embedded student on scenes and takes the value whose best validation RSUM
is highest, averaged over seeds that `make ablation` does not use; then it goes on to the next setting. It takes about a
quarter of an hour on 2 cores; a stopped run goes on where it was.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters, load_parameters
from stores.atomic import write_text
from stores.commands import resumable
from stores.parameters import Loss

STORE: Final = Path("artifacts/store")
WORK: Final = Path("artifacts/choose-loss")
TABLE: Final = Path("docs/loss-settings.csv")
SEEDS: Final = (100, 101)
START: Final = Loss(alpha=1.0, beta=0.5, teacher_temperature=0.1)
GRID: Final[dict[str, tuple[float, ...]]] = {
    "teacher_temperature": (1.0, 0.2, 0.1, 0.05, 0.02),
    "alpha": (0.1, 0.3, 1.0, 3.0),
    "beta": (0.1, 0.5, 1.5, 5.0),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Try the values of each setting, keep the best, and write down what each reached."""
    with resumable():
        extract(load_parameters(ExtractParameters), STORE)
        _choose()


def _choose() -> None:
    chosen, lines = START, ["tau_p,alpha,beta,validation_rsum," + ",".join(f"seed_{seed}" for seed in SEEDS)]
    for setting, values in GRID.items():
        tried = [replace(chosen, **{setting: value}) for value in values]
        reached = _reached(tried)
        for loss, by_seed in zip(tried, reached, strict=True):
            where = (loss.teacher_temperature, loss.alpha, loss.beta)
            lines.append(
                ",".join([*(f"{v:g}" for v in where), *(f"{v:.1f}" for v in (statistics.mean(by_seed), *by_seed))])
            )
        best = max(range(len(values)), key=lambda place: statistics.mean(reached[place]))
        chosen = tried[best]
        click.echo(f"{setting}: {values[best]:g} of {', '.join(f'{v:g}' for v in values)}")
    write_text(TABLE, "\n".join(dict.fromkeys(lines)) + "\n")
    click.echo(f"τ_P {chosen.teacher_temperature:g}, α {chosen.alpha:g}, β {chosen.beta:g}. Written to {TABLE}.")


def _reached(tried: list[Loss]) -> list[list[float]]:
    """Return the best validation RSUM of each loss, by seed."""
    parameters = load_parameters(TrainParameters)
    trials: dict[str, TrainParameters] = {}
    for loss in tried:
        for seed in SEEDS:
            train = replace(parameters.train, seed=seed, compare=False)
            trials[_name(loss, seed)] = replace(parameters, loss=loss, train=train)
    found: dict[str, dict[str, Any]] = train_all(trials, STORE, WORK)
    return [[found[_name(loss, seed)]["validation_RSUM"] for seed in SEEDS] for loss in tried]


def _name(loss: Loss, seed: int) -> str:
    return f"tau{loss.teacher_temperature:g}-alpha{loss.alpha:g}-beta{loss.beta:g}/seed{seed}"


if __name__ == "__main__":
    main()
