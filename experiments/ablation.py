"""What each part of soft-label alignment contributes: the counterpart of the CUSA paper's ablation (Table 5).

`make ablation` extracts the data set of params.yaml, trains its student with InfoNCE, + CSA, + USA and + CUSA by the
paper's settings and by those of params.yaml, three seeds each, and writes figures (CSV), tables (Markdown) and a plot.
On scenes it takes about twenty minutes on 2 cores; a stopped run goes on where it was. Other data sets: pass their
parameters, such as experiments/coco-mini.yaml.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
from rich.markdown import Markdown

from experiments.comparison import INFONCE, PARTS, Outcome, check_folder, write_comparison
from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters, load_parameters
from stores.commands import resumable
from stores.console import output
from stores.parameters import Loss
from stores.streams import Command

SEEDS: Final = (0, 1, 2)
PAPER: Final = Loss(alpha=0.1, beta=0.5, teacher_temperature=1.0)
"""CUSA's settings for CLIP (arXiv 2403.05261)."""


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--params", type=click.Path(path_type=Path), help="Parameters file; without it, ./params.yaml.")
@click.option("--store", type=click.Path(path_type=Path), default=Path("artifacts/store"), help="Made where missing.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("artifacts/ablation"), help="What is written.")
def main(params: Path | None, store: Path, out: Path) -> None:
    """Train with and without each part of the soft labels, and report what each contributes."""
    parameters = load_parameters(TrainParameters, params)
    began = time.monotonic()
    with resumable():
        extract(load_parameters(ExtractParameters, params), store)
        tables = ablate(parameters, store, out)
    output().print(Markdown(tables.read_text()))
    click.echo(
        f"{(time.monotonic() - began) / 60:.1f} minutes. Tables, figures and plot: {out}/ablation.{{md,csv,png}}"
    )


def ablate(parameters: TrainParameters, store: Path, out: Path, seeds: Sequence[int] = SEEDS) -> Path:
    """Train every setting with every seed in `out`/runs, and return the tables' path, `out`/ablation.md.

    Raises:
        CusaError: a training cannot be run; the finished ones are kept.
    """
    check_folder(out)
    losses = settings(parameters.loss)
    trials = {
        _place(setting, seed): replace(parameters, loss=loss, train=replace(parameters.train, seed=seed, compare=False))
        for seed in seeds
        for setting, loss in losses.items()
    }
    found = train_all(trials, store, out / "runs")
    outcomes = [
        Outcome(setting, seed, loss, _figures(found[_place(setting, seed)]))
        for setting, loss in losses.items()
        for seed in seeds
    ]
    return write_comparison(outcomes, out)


def settings(ours: Loss) -> dict[tuple[str, str], Loss]:
    """Return the losses to compare by (whose settings, which parts)."""
    losses = {("", INFONCE): replace(ours, alpha=0.0, beta=0.0)}
    for whose, loss in (("paper", replace(ours, **_weights(PAPER))), ("ours", ours)):
        csa, usa, both = PARTS
        losses[whose, csa] = replace(loss, beta=0.0)
        losses[whose, usa] = replace(loss, alpha=0.0)
        losses[whose, both] = loss
    return losses


def _weights(loss: Loss) -> dict[str, Any]:
    return {"alpha": loss.alpha, "beta": loss.beta, "teacher_temperature": loss.teacher_temperature}


def _place(setting: tuple[str, str], seed: int) -> str:
    name = "-".join(filter(None, setting)).replace("+ ", "").lower()
    return f"{name}/seed-{seed}"


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one training that the data set allows, under the names that tables have."""
    found = {"RSUM": measured["RSUM"]}
    if true := measured.get("true_relevance"):
        for name, direction in (("i→t", "image_to_text"), ("t→i", "text_to_image")):
            found[f"true mAP@R {name}"] = true[direction]["mAP@R"]
    for name, figure in (("image R@1", "image_class_R@1"), ("caption Spearman", "caption_spearman")):
        if figure in measured:
            found[name] = measured[figure]
    return found


if __name__ == "__main__":
    main()
