"""What wrong pairs cost, and what finding and rematching them saves (L2RM, 2403.05105), at several ratios of noise.

    python -m experiments.wrong_pairs --out artifacts/wrong-pairs

makes a store of the data set of params.yaml, makes its pairs wrong in each ratio (by image), judges them by the
teachers, trains with InfoNCE, CUSA, L2RM, both, and both split by the teachers, and writes wrong-pairs.{csv,md,png}. A
stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import click
import matplotlib
from rich.markdown import Markdown

from experiments.comparison import spread
from experiments.trainings import train_all
from pipeline.extract import extract
from pipeline.inspection.suspects import suspects
from stores import ExtractParameters, TrainParameters, load_parameters
from stores.clean import FILE_NAME
from stores.commands import resumable
from stores.console import output
from stores.ownership import write_signed
from stores.streams import Command

matplotlib.use("Agg")
from matplotlib import pyplot

METHODS: Final = ("InfoNCE", "CUSA", "L2RM", "CUSA + L2RM", "CUSA + L2RM, split by teachers")
RATIOS: Final = (0.0, 0.2, 0.4, 0.6, 0.8)
SPLIT: Final = ("AUC", "precision", "recall")


class Trained(NamedTuple):
    """What one training reached on the test split, and how its split fared by epoch."""

    method: str
    ratio: float
    seed: int
    figures: dict[str, float]
    split: list[dict[str, float]]


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--params", type=click.Path(path_type=Path), help="Parameters file; without it, ./params.yaml.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("artifacts/wrong-pairs"), help="What is written.")
@click.option("--ratio", "ratios", type=float, multiple=True, default=RATIOS, help="Ratio of wrong pairs; may repeat.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), help="Of a training; may repeat.")
def main(params: Path | None, out: Path, ratios: Sequence[float], seeds: Sequence[int]) -> None:
    """Train at several ratios of wrong pairs, and report what is kept."""
    wanted, parameters = load_parameters(ExtractParameters, params), load_parameters(TrainParameters, params)
    with resumable():
        store = out / "store"  # one for all: another ratio makes pairing.arrow anew, and nothing else
        for ratio in ratios:
            extract(replace(wanted, data=replace(wanted.data, noise=replace(wanted.data.noise, ratio=ratio))), store)
            judged = out / f"suspects-{ratio:g}"
            suspects(store, split="train", count=1000, width=50, shown=100, out=judged)
            trials = {
                name_of(method, ratio, seed): trial(parameters, method, seed, judged / FILE_NAME)
                for seed in seeds
                for method in METHODS
            }
            train_all(trials, store, out / "runs")
        write(collect(out / "runs"), out)
    output().print(Markdown((out / "wrong-pairs.md").read_text()))


def name_of(method: str, ratio: float, seed: int) -> str:
    """Return the folder of a training."""
    return f"{METHODS.index(method)}-{ratio:g}-{seed}"


def trial(parameters: TrainParameters, method: str, seed: int, clean: Path) -> TrainParameters:
    """Return the parameters of a training."""
    loss, train = parameters.loss, replace(parameters.train, seed=seed, compare=False)
    if "CUSA" not in method:
        loss = replace(loss, alpha=0.0, beta=0.0)
    if "L2RM" in method:
        loss = replace(loss, recipe="l2rm")
    if "teachers" in method:
        loss, train = replace(loss, rematching=replace(loss.rematching, warm_up=0)), replace(train, clean=str(clean))
    return replace(parameters, loss=loss, train=train)


def collect(runs: Path) -> list[Trained]:
    """Return the finished trainings below a folder."""
    found = []
    for path in sorted(runs.glob("*-*-*/metrics.json")):
        number, ratio, seed = path.parent.name.split("-")
        (measured,) = json.loads(path.read_text()).values()
        true = measured.get("true_relevance", {})
        figures = {"RSUM": measured["RSUM"]} | {
            f"true mAP@R {short}": true[way]["mAP@R"]
            for way, short in (("image_to_text", "i→t"), ("text_to_image", "t→i"))
            if way in true
        }
        with (path.parent / "epochs.csv").open(encoding="utf-8", newline="") as stream:
            epochs = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
        split = [
            {name: row[f"terms/rematched {name}"] for name in SPLIT if f"terms/rematched {name}" in row}
            for row in epochs
        ]
        found.append(Trained(METHODS[int(number)], float(ratio), int(seed), figures, split))
    return found


def write(found: Sequence[Trained], out: Path) -> None:
    """Write the figures of every training, their means, and the plot."""
    names = list(found[0].figures)
    with (out / "wrong-pairs.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["method", "ratio", "seed", *names, *(f"{name} by epoch" for name in SPLIT)])
        for one in found:
            by_epoch = [" ".join(f"{e[name]:.2f}" if name in e else "-" for e in one.split) for name in SPLIT]
            table.writerow([one.method, one.ratio, one.seed, *(f"{one.figures[n]:.2f}" for n in names), *by_epoch])
    ratios = sorted({one.ratio for one in found})
    tables = []
    for name in names:
        rows = [[method, *(_cell(found, method, ratio, name) for ratio in ratios)] for method in METHODS]
        heads = [[name, *(f"{ratio:.0%}" for ratio in ratios)], ["---", *["---:"] * len(ratios)]]
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in heads + rows))
    write_signed(out / "wrong-pairs.md", "\n\n".join(tables) + "\n")
    _draw(found, ratios, names, out / "wrong-pairs.png")


def _values(found: Sequence[Trained], method: str, ratio: float, name: str) -> list[float]:
    return [one.figures[name] for one in found if (one.method, one.ratio) == (method, ratio)]


def _cell(found: Sequence[Trained], method: str, ratio: float, name: str) -> str:
    values = _values(found, method, ratio, name)
    if not values:
        return ""
    return f"{spread(values).mean:.1f}" + (f" ± {spread(values).deviation:.1f}" if len(values) > 1 else "")


def _draw(found: Sequence[Trained], ratios: Sequence[float], names: Sequence[str], path: Path) -> None:
    """Draw each figure over the ratio, and the AUC of the splits by epoch."""
    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(4 * (len(names) + 1), 3.6), layout="constrained")
    for axis, name in zip(axes, names, strict=False):
        for number, method in enumerate(METHODS):
            points = [(ratio, v) for ratio in ratios if (v := _values(found, method, ratio, name))]
            axis.plot(
                [r for r, _ in points], [sum(v) / len(v) for _, v in points], "o-", color=f"C{number}", label=method
            )
        axis.set_title(name)
        axis.set_xlabel("wrong pairs")
        axis.grid(alpha=0.3)
    for one in found:
        if any("AUC" in epoch for epoch in one.split):
            style = {"color": f"C{METHODS.index(one.method)}", "alpha": 0.3 + 0.7 * one.ratio}
            axes[-1].plot(range(1, len(one.split) + 1), [e.get("AUC", float("nan")) for e in one.split], ".-", **style)
    axes[-1].set_title("AUC of the split")
    axes[-1].set_xlabel("epoch; darker: more wrong pairs")
    axes[-1].grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, format="png", dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
