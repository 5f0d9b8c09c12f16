"""What soft-label alignment brings on real photographs, with pretrained encoders, and with how many of them.

`make photos` divides the 1,002 photographs of ../shared/data/coco-mini anew several times, extracts each division with
the teachers EfficientNet-Lite2 and all-mpnet-base-v2, and trains students of EfficientNet-Lite0 and all-MiniLM-L6-v2 on
it: with InfoNCE alone, with each part of the soft labels by the settings of params.yaml, and with all of them by the
paper's. What it writes are paired differences from InfoNCE alone on the same division and seed. A stopped run goes on
where it was.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.markdown import Markdown
from scipy import stats

from experiments.ablation import settings
from experiments.comparison import INFONCE
from experiments.known_features import known_teachers
from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters
from stores.atomic import write_json, write_text
from stores.commands import resumable
from stores.console import output
from stores.parameters import Data, Loss, Student, Teachers, Train
from stores.streams import Command

PHOTOS: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"
MEASURED: Final = 201
"""Photographs of a division that choose the best epoch, and as many that it is measured on."""
TEACHERS: Final = Teachers(image="efficientnet-lite2", text="mpnet")
SETTINGS: Final = (("", INFONCE), ("ours", "+ CSA"), ("ours", "+ USA"), ("ours", "+ CUSA"), ("paper", "+ CUSA"))
ENCODERS: Final = "towers:efficientnet-lite0+minilm@256"
STUDENTS: Final[dict[str, tuple[Student, Train]]] = {
    "frozen": (
        Student(model=ENCODERS, freeze=["image", "text"]),
        Train(epochs=15, learning_rate=1e-3, precision="fp32", compare=False),
    ),
    "text learns": (
        Student(model=ENCODERS, freeze=["image"]),
        Train(epochs=5, learning_rate=1e-4, precision="fp32", compare=False, captions="one"),
    ),
    "all learns": (
        Student(model=ENCODERS),
        Train(epochs=5, learning_rate=1e-4, precision="fp32", compare=False, captions="one"),
    ),
}
"""What of the encoders learns; where one does, few epochs by a rate that does not spoil it."""


class Trial(NamedTuple):
    """One training on one division."""

    student: str
    pictures: int
    division: int
    seed: int
    setting: tuple[str, str]
    rsum: float


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--photos", type=click.Path(path_type=Path), default=PHOTOS, help="Folder of dataset_karpathy.json.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("artifacts/photos"), help="What is written.")
@click.option("--student", type=click.Choice(list(STUDENTS)), default="frozen", help="What of the encoders learns.")
@click.option("--divisions", type=click.IntRange(min=2), default=5, help="Divisions of the photographs.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, help="Trainings of each setting on each division.")
@click.option("--pictures", type=int, multiple=True, default=(600,), help="Training photographs; several, one by one.")
@click.option(
    "--parts/--whole", default=True, help="Each part of the soft labels, or only all of them by our settings."
)
def main(
    photos: Path, out: Path, student: str, divisions: int, seeds: int, pictures: Sequence[int], parts: bool
) -> None:
    """Train on divisions of real photographs with and without soft labels, and report what these contribute."""
    if not (photos / "dataset_karpathy.json").is_file():
        click.echo(
            f"Skipped: there is no {photos / 'dataset_karpathy.json'}; the photographs are no part of the project."
        )
        return
    began, trials = time.monotonic(), []
    with resumable():
        everything = Data(source=str(photos / "dataset_karpathy.json"), images=str(photos / "images"))
        extract(ExtractParameters(data=everything, teachers=TEACHERS), out / "store")
        for count in pictures:
            for division in range(divisions):
                trials += _division(photos, out, student, count, division, seeds, parts)
        table = _table(trials)
        name = student.replace(" ", "-")
        write_text(out / f"{name}.csv", _csv(trials))
        write_text(out / f"{name}.md", table)
    output().print(Markdown(table))
    click.echo(f"{(time.monotonic() - began) / 60:.1f} minutes. Table and every figure: {out}/{name}.{{md,csv}}")


def _division(
    photos: Path, out: Path, student: str, pictures: int, division: int, seeds: int, parts: bool
) -> list[Trial]:
    """Train every setting with every seed on one division."""
    place = out / f"{pictures}-{division}"
    source = place / "dataset.json"
    write_json(source, _divided(json.loads((photos / "dataset_karpathy.json").read_text()), pictures, division))
    data = Data(source=str(source), format="karpathy", images=str(photos / "images"))
    extract(ExtractParameters(data=data, teachers=known_teachers(out / "store")), place / "store")
    known = settings(Loss())
    losses = {setting: known[setting] for setting in (SETTINGS if parts else (SETTINGS[0], SETTINGS[3]))}
    model, train = STUDENTS[student]
    wanted = {}
    for seed in range(division * seeds, (division + 1) * seeds):
        for setting, loss in losses.items():
            settled = replace(train, seed=seed)
            wanted[setting, seed] = TrainParameters(
                teachers=known_teachers(out / "store"), student=model, loss=loss, train=settled
            )
    names = {key: f"{student.replace(' ', '-')}/{'-'.join(key[0]).replace('+ ', '')}-{key[1]}" for key in wanted}
    found = train_all({names[key]: one for key, one in wanted.items()}, place / "store", place / "runs")
    return [
        Trial(student, pictures, division, seed, setting, found[names[setting, seed]]["RSUM"])
        for setting, seed in wanted
    ]


def _divided(document: dict[str, Any], pictures: int, division: int) -> dict[str, Any]:
    """Return Karpathy's document with its photographs divided anew: `pictures` to train on, the others to measure."""
    images = random.Random(division).sample(document["images"], 2 * MEASURED + pictures)
    splits = ["val"] * MEASURED + ["test"] * MEASURED + ["train"] * pictures
    return {**document, "images": [{**image, "split": split} for image, split in zip(images, splits, strict=True)]}


def _table(trials: Sequence[Trial]) -> str:
    """Return a Markdown table of means over divisions, and of paired differences with their 95 % intervals."""
    lines = [
        "| student | pictures | loss | settings | RSUM | difference | above zero |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for student, pictures, setting in dict.fromkeys((one.student, one.pictures, one.setting) for one in trials):
        same = [one for one in trials if (one.student, one.pictures) == (student, pictures)]
        alone = {(one.division, one.seed): one.rsum for one in same if one.setting[1] == INFONCE}
        mine = [one for one in same if one.setting == setting]
        whose, parts = setting
        level = f"{statistics.mean(one.rsum for one in mine):.1f}"
        differences = {(one.division, one.seed): one.rsum - alone[one.division, one.seed] for one in mine}
        gained = [_interval(differences), f"{sum(v > 0 for v in differences.values())} of {len(differences)}"]
        gained = ["", ""] if parts == INFONCE else gained
        lines.append("| " + " | ".join([student, str(pictures), parts, whose, level, *gained]) + " |")
    return "\n".join(lines) + "\n"


def _interval(differences: dict[tuple[int, int], float]) -> str:
    """Return the mean over divisions (of the means over seeds) ± its 95 % interval (Student's t)."""
    divisions = sorted({division for division, _ in differences})
    means = [statistics.mean(v for (d, _), v in differences.items() if d == division) for division in divisions]
    half = float(stats.t.ppf(0.975, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
    text = f"{statistics.mean(means):+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(statistics.mean(means)) > half else text


def _csv(trials: Sequence[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "pictures", "division", "seed", "settings", "parts", "rsum"])
    for one in trials:
        writer.writerow([*one[:4], *one.setting, f"{one.rsum:.2f}"])
    return text.getvalue()


if __name__ == "__main__":
    main()
