"""What soft-label alignment brings on real photographs, with pretrained encoders, and with how many of them.

`make photos` divides the 1,002 photographs of ../shared/data/coco-mini anew several times, extracts each division with
the teachers EfficientNet-Lite2 and all-mpnet-base-v2, and trains students of EfficientNet-Lite0 and all-MiniLM-L6-v2 on
it: with InfoNCE alone, with each part of the soft labels by the settings of params.yaml, and with all of them by the
paper's. What it writes are paired differences from InfoNCE alone on the same division and seed. `--losses targets`
tries other soft labels, to be chosen by validation RSUM. A stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.markdown import Markdown
from scipy import stats

from experiments.ablation import settings
from experiments.comparison import INFONCE, markdown_table
from experiments.known_features import known_teachers
from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, SourceError, TrainParameters
from stores.atomic import write_json, write_text
from stores.commands import resumable
from stores.console import output
from stores.parameters import Data, Loss, Student, Teachers, Train
from stores.streams import Command
from train.evaluation.models import load_model
from train.evaluation.sts import measure_sts

PHOTOS: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-mini"
MEASURED: Final = 201
"""Photographs of a division that choose the best epoch, and as many to measure it on; half of the rest, if less."""
LEAST: Final = 11
"""Of each of the two: among ten photographs R@10 is always 100 %."""
TEACHERS: Final = Teachers(image="efficientnet-lite2", text="mpnet")
ALONE, CUSA = ("", INFONCE), ("ours", "+ CUSA")
KNOWN: Final = settings(Loss())
PARTS: Final = {one: KNOWN[one] for one in (ALONE, ("ours", "+ CSA"), ("ours", "+ USA"), CUSA, ("paper", "+ CUSA"))}
TARGETS: Final = {
    **{("τ_P", f"{tau:g}"): Loss(teacher_temperature=tau) for tau in (0.05, 0.07, 0.2)},
    **{("top k", str(k)): Loss(soft_top_k=k) for k in (4, 16)},
    ("both teachers", "mean"): Loss(mix="add"),
    ("both teachers", "product"): Loss(mix="dot"),
    ("both teachers", "mean, τ_P 0.07"): Loss(mix="add", teacher_temperature=0.07),
}
"""Soft labels other than those of params.yaml: sharper, fewer, or of what both teachers say."""
LOSSES: Final = {"whole": {one: PARTS[one] for one in (ALONE, CUSA)}, "parts": PARTS}
LOSSES["targets"] = LOSSES["whole"] | TARGETS
ENCODERS: Final = "towers:efficientnet-lite0+minilm@256"
TRAIN: Final = Train(precision="fp32", compare=False)
STUDENTS: Final[dict[str, tuple[Student, Train]]] = {
    "frozen": (Student(model=ENCODERS, freeze=["image", "text"]), replace(TRAIN, epochs=15, learning_rate=1e-3)),
    "text learns": (Student(model=ENCODERS, freeze=["image"]), replace(TRAIN, epochs=2, learning_rate=2e-5)),
    "all learns": (Student(model=ENCODERS), replace(TRAIN, epochs=2, learning_rate=2e-5)),
}
"""What of the encoders learns; where one does, it begins with the heads of the frozen student of the same loss."""
ONE_BY_ONE: Final = ("all learns",)
"""Students of which a training takes 12 GiB: on a CPU, too, one after another."""


class Trial(NamedTuple):
    """One training on one division."""

    student: str
    pictures: int
    division: int
    seed: int
    setting: tuple[str, str]
    figures: dict[str, float]


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--photos", type=click.Path(path_type=Path), default=PHOTOS, help="Folder of dataset_karpathy.json.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("artifacts/photos"), help="What is written.")
@click.option("--student", type=click.Choice(list(STUDENTS)), default="frozen", help="What of the encoders learns.")
@click.option("--divisions", type=click.IntRange(min=2), default=5, help="Divisions of the photographs.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, help="Trainings of each setting on each division.")
@click.option("--pictures", type=click.IntRange(1), multiple=True, default=(600,), help="To train on; may be several.")
@click.option("--losses", type=click.Choice(list(LOSSES)), default="parts", help="What is compared with InfoNCE.")
@click.option("--sts", type=click.Path(path_type=Path), help="Folder of STS13 and SICK-R: measure the text side too.")
def main(
    photos: Path,
    out: Path,
    student: str,
    divisions: int,
    seeds: int,
    pictures: Sequence[int],
    losses: str,
    sts: Path | None,
) -> None:
    """Train on divisions of real photographs with and without soft labels, and report what these contribute."""
    began, trials, source = time.monotonic(), list[Trial](), photos / "dataset_karpathy.json"
    with resumable():
        document = _read(source, max(pictures))
        everything = Data(source=str(source), images=str(photos / "images"))
        extract(ExtractParameters(data=everything, teachers=TEACHERS), out / "store")
        for count in pictures:
            for division in range(divisions):
                place = _divide(document, photos / "images", out, count, division)
                chosen = range(division * seeds, (division + 1) * seeds)
                for which in dict.fromkeys(("frozen", student)):
                    found = _train(place, which, LOSSES[losses], chosen)
                trials += [
                    Trial(student, count, division, seed, setting, figures | _sts(place, student, setting, seed, sts))
                    for (setting, seed), figures in found.items()
                ]
        table = _table(trials, len(document["images"]))
        name = f"{student}-{losses}".replace(" ", "-")
        write_text(out / f"{name}.csv", _csv(trials))
        write_text(out / f"{name}.md", table)
    output().print(Markdown(table))
    click.echo(f"{(time.monotonic() - began) / 60:.1f} minutes. Table and every figure: {out}/{name}.{{md,csv}}")


def _read(source: Path, pictures: int) -> dict[str, Any]:
    """Return Karpathy's document, after checking that it has enough photographs to train on so many `pictures`.

    Raises:
        SourceError: it is another file, or they are too few.
    """
    try:
        document: dict[str, Any] = json.loads(source.read_text())
        found = len(document["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = "Karpathy's document of the photographs in images/ beside it; they are no part of the project"
        raise SourceError(f"cannot be read ({error!r})", path=source, expected=wanted) from None
    if found < (least := pictures + 2 * LEAST):
        most = found - 2 * LEAST
        smaller = f"give --pictures {most} or fewer, or " if most > 0 else ""
        raise SourceError(
            "photographs",
            path=source,
            found=found,
            expected=f"at least {least}: {pictures} to train on (--pictures), and {LEAST} each to choose the epoch "
            f"and to measure",
            advice=f"To go on, {smaller}name a folder of more photographs (--photos).",
        )
    return document


def _divide(document: dict[str, Any], images: Path, out: Path, pictures: int, division: int) -> Path:
    """Make the store of one division of the photographs, and return the folder that it is in."""
    place = out / f"{pictures}-{division}"
    source = place / "dataset.json"
    write_json(source, _divided(document, pictures, division))
    data = Data(source=str(source), format="karpathy", images=str(images))
    extract(ExtractParameters(data=data, teachers=known_teachers(out / "store")), place / "store")
    return place


def _train(
    place: Path, student: str, losses: Mapping[tuple[str, str], Loss], seeds: Sequence[int]
) -> dict[tuple[tuple[str, str], int], dict[str, float]]:
    """Train a student on one division with every loss and seed; return the RSUM of each, on test and validation."""
    model, train = STUDENTS[student]
    wanted = {}
    for seed in seeds:
        for setting, loss in losses.items():
            begun = None if student == "frozen" else str(place / "runs" / _name("frozen", setting, seed))
            wanted[setting, seed] = TrainParameters(
                teachers=known_teachers(place.parent / "store"),
                student=replace(model, weights=begun),
                loss=loss,
                train=replace(train, seed=seed),
            )
    names = {key: _name(student, *key) for key in wanted}
    trials = {names[key]: one for key, one in wanted.items()}
    found = train_all(trials, place / "store", place / "runs", at_once=1 if student in ONE_BY_ONE else None)
    return {
        key: {"RSUM": found[name]["RSUM"], "validation": found[name]["validation_RSUM"]} for key, name in names.items()
    }


def _name(student: str, setting: tuple[str, str], seed: int) -> str:
    loss = "-".join(filter(None, setting)).replace("+ ", "").replace(",", "").replace(" ", "-")
    return f"{student.replace(' ', '-')}/{loss}-{seed}"


def _sts(place: Path, student: str, setting: tuple[str, str], seed: int, folder: Path | None) -> dict[str, float]:
    """Return Spearman × 100 of a trained student's texts on the sets that lie in `folder`."""
    if folder is None:
        return {}
    kept = place / "sts" / f"{_name(student, setting, seed)}.json"
    if not kept.exists():
        model = load_model(str(place / "runs" / _name(student, setting, seed)), precision="fp32")
        write_json(kept, measure_sts(model, folder).figures)
    figures: dict[str, float] = json.loads(kept.read_text())
    return figures


def _divided(document: dict[str, Any], pictures: int, division: int) -> dict[str, Any]:
    """Return Karpathy's document with its photographs divided anew: `pictures` to train on, the others to measure."""
    measured = _measured(len(document["images"]), pictures)
    images = random.Random(division).sample(document["images"], 2 * measured + pictures)
    splits = ["val"] * measured + ["test"] * measured + ["train"] * pictures
    return {**document, "images": [{**image, "split": split} for image, split in zip(images, splits, strict=True)]}


def _measured(photographs: int, pictures: int) -> int:
    """Return on how many photographs a division with `pictures` to train on is measured."""
    return min(MEASURED, (photographs - pictures) // 2)


def _table(trials: Sequence[Trial], photographs: int) -> str:
    """Return a Markdown table of means over divisions, and of paired differences with their 95 % intervals."""
    figures = [name for name in trials[0].figures if name != "validation"]
    heads = ["student", "pictures", "loss", "settings", "validation RSUM"]
    for name in figures:
        heads += [name, "difference", "above zero"]
    lines = []
    for student, pictures, setting in dict.fromkeys((one.student, one.pictures, one.setting) for one in trials):
        same = [one for one in trials if (one.student, one.pictures) == (student, pictures)]
        mine = [one for one in same if one.setting == setting]
        cells = [student, str(pictures), setting[1], setting[0], _mean(mine, "validation")]
        for name in figures:
            alone = {(one.division, one.seed): one.figures[name] for one in same if one.setting == ALONE}
            differences = {(one.division, one.seed): one.figures[name] - alone[one.division, one.seed] for one in mine}
            ratio = _measured(photographs, pictures) / pictures
            above = f"{sum(v > 0 for v in differences.values())} of {len(differences)}"
            gained = [_interval(differences, ratio), above]
            cells += [_mean(mine, name), *(["", ""] if setting == ALONE else gained)]
        lines.append(cells)
    return markdown_table(heads, lines, texts=4)


def _mean(trials: Sequence[Trial], name: str) -> str:
    return f"{statistics.mean(one.figures[name] for one in trials):.1f}"


def _interval(differences: dict[tuple[int, int], float], ratio: float) -> str:
    """Return the mean over divisions (of the means over seeds) ± its 95 % interval.

    It is the corrected resampled t interval (Nadeau and Bengio, Inference for the Generalization Error, Machine
    Learning 52, 2003): divisions share photographs, so the variance of a mean over J is s² (1/J + `ratio`), `ratio`
    that of test to training photographs, where s²/J would take them for independent.
    """
    divisions = sorted({division for division, _ in differences})
    means = [statistics.mean(v for (d, _), v in differences.items() if d == division) for division in divisions]
    spread = statistics.stdev(means) * math.sqrt(1 / len(means) + ratio)
    half = float(stats.t.ppf(0.975, len(means) - 1)) * spread
    text = f"{statistics.mean(means):+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(statistics.mean(means)) > half else text


def _csv(trials: Sequence[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "pictures", "division", "seed", "settings", "loss", *trials[0].figures])
    for one in trials:
        writer.writerow([*one[:4], *one.setting, *(f"{value:.2f}" for value in one.figures.values())])
    return text.getvalue()


if __name__ == "__main__":
    main()
