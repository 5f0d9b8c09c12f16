"""Do further modalities help a pair, what do gaps cost, does enrichment help, can unseen classes be told? On scenes.

`python -m experiments.modalities` trains heads over stored features for every set of modalities, PCMC and PCMR, three
seeds and three shares of missing rows, and writes the figures, their means and a plot to docs/. It takes about half an
hour on one core; a stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import matplotlib

from experiments.comparison import markdown_table
from experiments.trainings import train_all
from pipeline.extract import extract
from stores import ExtractParameters, TrainParameters
from stores.atomic import write_text
from stores.parameters import Data, Evaluation, Head, Loss, Scenes, Student, Train
from train.report.training_curves import save_drawing

matplotlib.use("Agg")
from matplotlib import pyplot

WORK: Final = Path("artifacts/modalities")
TABLE, PLOT, MEANS = Path("docs/modalities.csv"), Path("docs/modalities.png"), WORK / "means.md"
FEATURES: Final = {
    "image": "hog-color",
    "text": "minilm",
    "attributes": "attributes",
    "speech": "speech",
    "class_embedding": "class_embedding",
}
SETS: Final = (
    "image text",
    "image speech",
    "text speech",
    "image text attributes",
    "image text speech",
    "image text attributes speech",
)
PAIRS: Final = (("image", "text"), ("image", "speech"), ("text", "speech"))
ENRICHED: Final = ("image+attributes", "text+speech")
LOSSES, SEEDS, MISSING = ("pcmc", "pcmr"), (0, 1, 2), (0.0, 0.3, 0.6)
UNSEEN: Final = 16


@dataclass(frozen=True)
class Setting:
    """What a training was of."""

    modalities: str
    loss: str
    missing: float
    unseen: int

    def parameters(self, seed: int) -> TrainParameters:
        """Return the parameters of a training."""
        names = self.modalities.split()
        heads = {name: Head(features=FEATURES[name]) for name in names}
        enriched = [name for name in ENRICHED if set(name.split("+")) <= set(names)]
        return TrainParameters(
            student=Student(model="heads", dim=256, heads=heads),
            loss=Loss(original=self.loss, alpha=0.0, beta=0.0),
            train=Train(seed=seed, epochs=8, learning_rate=1e-3, compare=False, precision="fp32"),
            eval=Evaluation(enriched=enriched),
        )


def main() -> None:
    """Make the stores, train everything, and write down what each reaches."""
    found: dict[tuple[Setting, int], dict[str, Any]] = {}
    for missing, unseen in [*product(MISSING, [0]), (0.0, UNSEEN)]:
        store = WORK / f"store-{missing:g}-{unseen}"
        extract(_scenes(missing, unseen), store)
        trials = dict(_trials(missing, unseen))
        names = {_name(setting, seed): (setting, seed) for setting, seed in trials}
        parameters = {name: trials[key] for name, key in names.items()}
        found |= {names[name]: figures for name, figures in train_all(parameters, store, WORK / "runs").items()}
    rows = [{**asdict(setting), "seed": seed, **_flat(one)} for (setting, seed), one in found.items()]
    _write_table(rows)
    write_text(MEANS, _means(found))
    _draw(found)


def _scenes(missing: float, unseen: int) -> ExtractParameters:
    modalities: Any = ["attributes", "speech", "class_embedding"]
    return ExtractParameters(data=Data(scenes=Scenes(modalities=modalities, missing=missing, unseen=unseen)))


def _trials(missing: float, unseen: int) -> Iterator[tuple[tuple[Setting, int], TrainParameters]]:
    sets = (" ".join(FEATURES),) if unseen else SETS if not missing else SETS[4:]
    for modalities, loss, seed in product(sets, LOSSES, SEEDS):
        setting = Setting(modalities, loss, missing, unseen)
        yield (setting, seed), setting.parameters(seed)


def _name(setting: Setting, seed: int) -> str:
    return f"{setting.modalities.replace(' ', '-')}-{setting.loss}-{setting.missing:g}-{setting.unseen}-{seed}"


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """Return by way R@1 and the sum of R@1, R@5 and R@10; and the accuracies by class."""
    ways = figures.get("pairs") or {name: one for name, one in figures.items() if "_to_" in name}
    flat = {f"{way} R@1": one["R@1"] for way, one in ways.items()}
    flat |= {f"{way} sum": sum(one[f"R@{k}"] for k in (1, 5, 10)) for way, one in ways.items()}
    for way, one in (figures.get("zero_shot") or {}).items():
        flat |= {f"{way} {name}": value for name, value in one.items()}
    return flat


def _pair(figures: dict[str, Any], first: str, second: str) -> float:
    """Return R@1 + R@5 + R@10 both ways."""
    flat = _flat(figures)
    return flat[f"{first}_to_{second} sum"] + flat[f"{second}_to_{first} sum"]


def _write_table(rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(TABLE, text.getvalue())


def _spread(values: list[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"


def _means(found: dict[tuple[Setting, int], dict[str, Any]]) -> str:
    """Return tables of means ± standard deviations over the seeds: pairs by set, enrichment, unseen classes."""
    settings = list(dict.fromkeys(setting for setting, _ in found))
    pairs, enriched, unseen = [], [], []
    for one in settings:
        runs = [_flat(found[one, seed]) for seed in SEEDS]
        head = [one.modalities, one.loss.upper(), f"{one.missing:.0%}"]
        if one.unseen:
            for way in ("image", "text", "attributes", "speech", "image+attributes", "text+speech"):
                names = [f"{way}_to_class_embedding {name}" for name in ("accuracy", "chance", "harmonic mean")]
                unseen.append([one.loss.upper(), way, *(_spread([run[name] for run in runs]) for name in names)])
            continue
        names = one.modalities.split()
        there = [
            _spread([_pair(found[one, seed], *pair) for seed in SEEDS]) if set(pair) <= set(names) else ""
            for pair in PAIRS
        ]
        pairs.append([*head, *there])
        for plain, rich, way in (
            ("text_to_image", "text+speech_to_image", "query: text + speech → image"),
            ("speech_to_image", "text+speech_to_image", "query: speech + text → image"),
            ("image_to_text", "image+attributes_to_text", "query: image + attributes → text"),
            ("text_to_image", "text_to_image+attributes", "database: text → image + attributes"),
            ("image_to_text", "image_to_text+speech", "database: image → text + speech"),
            ("text_to_image", "text+speech_to_image+attributes", "both: text + speech → image + attributes"),
        ):
            if f"{rich} R@1" in runs[0]:
                values = [[run[f"{name} R@1"] for run in runs] for name in (plain, rich)]
                gains = [b - a for a, b in zip(*values, strict=True)]
                enriched.append([*head, way, *map(_spread, values), _spread(gains, "+")])
    titles = ["modalities", "loss", "missing"]
    return "\n\n".join(
        [
            markdown_table([*titles, *(" – ".join(pair) for pair in PAIRS)], pairs, texts=3),
            markdown_table([*titles, "enriched", "R@1 without", "with", "gain"], enriched, texts=4),
            markdown_table(["loss", "query", "accuracy", "chance", "harmonic mean"], unseen, texts=2),
        ]
    )


def _draw(found: dict[tuple[Setting, int], dict[str, Any]]) -> None:
    """Draw for each pair and loss what each larger set gains over the pair trained alone."""
    figure, axes = pyplot.subplots(1, len(PAIRS), figsize=(12, 3.8), sharey=True, layout="constrained")
    for axis, pair in zip(axes, PAIRS, strict=True):
        larger = [one for one in SETS if set(pair) < set(one.split())]
        for number, loss in enumerate(LOSSES):
            alone, gains = Setting(" ".join(pair), loss, 0.0, 0), []
            for modalities in larger:
                one = replace(alone, modalities=modalities)
                gains.append([_pair(found[one, seed], *pair) - _pair(found[alone, seed], *pair) for seed in SEEDS])
            places = [place + 0.38 * number for place in range(len(larger))]
            axis.bar(places, [statistics.mean(gain) for gain in gains], 0.36, color=f"C{number}", label=loss.upper())
            for place, gain in zip(places, gains, strict=True):
                axis.plot([place] * len(gain), gain, "k.", markersize=4)
        names = ["+ " + " + ".join(n for n in one.split() if n not in pair) for one in larger]
        axis.set_xticks([place + 0.19 for place in range(len(larger))], names, rotation=15)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(" – ".join(pair), fontsize=10)
    axes[0].set_ylabel("gain in RSUM over the pair alone")
    axes[0].legend()
    save_drawing(figure, PLOT)


if __name__ == "__main__":
    main()
