"""What do sets of vectors bring over one vector of the same frozen encoders, and what do their losses? Two data sets.

`python -m experiments.sets` trains students of EfficientNet-Lite0 and all-MiniLM-L6-v2 on scenes and on the photographs
of ../shared/data/coco-mini, three seeds each: one vector of pooled outputs, sets of one and of four members of local
ones, with contrastive loss, MaxMatch's terms and soft labels. It writes every run's figures to docs/sets.csv and their
means beside the runs. It takes about an hour on one core; a stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from experiments.comparison import markdown_table
from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters
from stores.atomic import write_text
from stores.parameters import Data, Loss, Sets, Student, Teachers, Train

WORK, TABLE = Path("artifacts/sets"), Path("docs/sets.csv")
PHOTOS: Final = Path(__file__).resolve().parents[2] / "shared/data/coco-mini/dataset_karpathy.json"
ENCODERS: Final = "efficientnet-lite0+minilm"
SEEDS: Final = (0, 1, 2)
HARD: Final = Loss(alpha=0, beta=0)
DATA: Final[dict[str, tuple[ExtractParameters, Train]]] = {
    "scenes": (ExtractParameters(), Train(epochs=4, learning_rate=1e-3)),
    "photos": (
        ExtractParameters(data=Data(source=str(PHOTOS)), teachers=Teachers(image="efficientnet-lite2", text="mpnet")),
        Train(epochs=8, learning_rate=1e-3),
    ),
}
SETTINGS: Final[dict[str, tuple[Student, Loss]]] = {
    "one vector, 256": (Student(model=f"towers:{ENCODERS}@256"), HARD),
    "one vector, 1,024": (Student(model=f"towers:{ENCODERS}@1024"), HARD),
    "one vector, 256 + CUSA": (Student(model=f"towers:{ENCODERS}@256"), Loss()),
    "set of one": (
        Student(model=f"maxmatch:{ENCODERS}@256", sets=Sets(members=1, activation="none")),
        HARD,
    ),
    "set of four": (Student(model=f"maxmatch:{ENCODERS}@256"), HARD),
    "set of four + terms": (Student(model=f"maxmatch:{ENCODERS}@256"), replace(HARD, recipe="maxmatch")),
    "set of four + terms + CUSA": (Student(model=f"maxmatch:{ENCODERS}@256"), Loss(recipe="maxmatch")),
}


def main() -> None:
    """Make the stores, train everything, and write down what each reaches."""
    rows: list[dict[str, Any]] = []
    for data, (source, train) in DATA.items():
        extract(source, WORK / data / "store")
        names = {
            f"{setting.replace(' ', '-').replace(',', '')}/{seed}": (setting, seed)
            for seed in SEEDS
            for setting in SETTINGS
        }
        trials = {name: _parameters(source, train, *which) for name, which in names.items()}
        found = train_all(trials, WORK / data / "store", WORK / data)
        rows += [
            {"data": data, "setting": setting, "seed": seed, **_figures(found[name])}
            for name, (setting, seed) in names.items()
        ]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(TABLE, text.getvalue())
    write_text(WORK / "means.md", "\n\n".join(_means([row for row in rows if row["data"] == data]) for data in DATA))


def _parameters(source: ExtractParameters, train: Train, setting: str, seed: int) -> TrainParameters:
    student, loss = SETTINGS[setting]
    return TrainParameters(
        teachers=source.teachers,
        student=replace(student, freeze=["image", "text"]),
        loss=loss,
        train=replace(train, seed=seed, compare=False),
    )


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    """Return what a training reached; of sets by the assignment, and by top pairs beside it."""
    found = {
        "RSUM": measured["RSUM"],
        "i2t R@1": measured["image_to_text"]["R@1"],
        "t2i R@1": measured["text_to_image"]["R@1"],
    }
    for name in ("image_class_R@1", "caption_spearman"):
        found |= {name: measured[name]} if name in measured else {}
    for way, one in measured.get("true_relevance", {}).items():
        found[f"true mAP@R {way}"] = one["mAP@R"]
    if sets := measured.get("sets"):
        found["RSUM, top pairs"] = sets["top pairs"]["RSUM"]
        for modality in ("image", "text"):
            if (spread := f"log circular variance {modality}") in sets:
                found[spread] = sets[spread]
            found[f"search recall {modality}"] = sets["search recall@10"][modality]
            found[f"least slot {modality}"] = min(sets["hits by slot"][modality].values())
    return found


def _means(rows: list[dict[str, Any]]) -> str:
    """Return the table of means ± standard deviations over the seeds."""
    figures = list(dict.fromkeys(name for row in rows for name in row if name not in ("data", "setting", "seed")))
    lines = []
    for setting in SETTINGS:
        some = [row for row in rows if row["setting"] == setting]
        values = [[row[name] for row in some if name in row] for name in figures]
        lines.append([setting, *(f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" if v else "" for v in values)])
    return markdown_table(["student and loss", *figures], lines, texts=1)


if __name__ == "__main__":
    main()
