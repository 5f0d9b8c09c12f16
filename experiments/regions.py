"""What does SGR's and SAF's comparison of regions with words bring over one vector of the same inputs? Two data sets.

`python -m experiments.regions` trains small ones (128 numbers of an embedding, 32 of a similarity vector) from scratch
on grids of EfficientNet-Lite0, of scenes and of the photographs of ../shared/data/coco-mini, three seeds each: the
cosine of the global vectors, SGR and SAF, with the hinge and the contrastive loss, with and without soft labels; and
SGRAF, the mean of SGR's and SAF's scores. Every run's figures go to docs/regions.csv; a stopped run goes on. It takes
somewhat over an hour on one core.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner
from torch import nn

from experiments.trainings import train_all
from models.encoded import Encoded
from models.inputs import Tensors
from models.scoring import Cosine
from models.sgraf import load_sgraf
from pipeline.extract import extract
from pipeline.inspection.words import write_vocabulary
from stores import ExtractParameters, TrainParameters
from stores.atomic import write_text
from stores.layout import teacher_slug
from stores.parameters import Data, Hinge, Loss, Scenes, Sgraf, Student, Teachers, Train
from train.eval_cli import main as evaluate

WORK, TABLE = Path("artifacts/regions"), Path("docs/regions.csv")
PHOTOS: Final = Path(__file__).resolve().parents[2] / "shared/data/coco-mini/dataset_karpathy.json"
GRID: Final = "grid:efficientnet-lite0@6x6"
SEEDS: Final = (0, 1, 2)
TRAIN: Final = Train(batch_size=32, learning_rate=1e-3, weight_decay=1e-4, precision="fp32", compare=False)
DATA: Final[dict[str, tuple[ExtractParameters, Train]]] = {
    "scenes": (
        ExtractParameters(data=Data(scenes=Scenes(train=1000, val=100, test=200))),
        replace(TRAIN, epochs=2),
    ),
    "photos": (
        ExtractParameters(data=Data(source=str(PHOTOS)), teachers=Teachers(image="efficientnet-lite2", text="minilm")),
        replace(TRAIN, epochs=4),
    ),
}
CONTRASTIVE: Final = Loss(alpha=0, beta=0)
HINGE: Final = replace(CONTRASTIVE, original="hinge", hinge=Hinge(warm_up=1))
SETTINGS: Final[dict[str, tuple[str, Loss]]] = {
    "one vector": ("one vector", CONTRASTIVE),
    "SGR": ("SGR", CONTRASTIVE),
    "SAF": ("SAF", CONTRASTIVE),
    "SGR, hinge": ("SGR", HINGE),
    "SGR + CUSA": ("SGR", replace(CONTRASTIVE, alpha=0.6, beta=0.75)),
    "SAF + CUSA": ("SAF", replace(CONTRASTIVE, alpha=1.0, beta=0.75)),
}


class OneVector(nn.Module):
    """SGRAF's encoders, and the cosine of what they make of an image and of a caption as a whole."""

    scorer = Cosine()

    def __init__(self, data: str) -> None:
        super().__init__()
        self.model = load_sgraf("SGR", _sizes(data))
        self.inputs, self.embed_dim = self.model.inputs, self.model.embed_dim

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode n items, without their parts."""
        return Encoded(self.model.encode(modality, tensors).vector)


scenes, photos = partial(OneVector, "scenes"), partial(OneVector, "photos")


def main() -> None:
    """Make the stores, train everything, and write down what each reaches."""
    rows = [row for data in DATA for row in _rows(data)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(TABLE, text.getvalue())


def _rows(data: str) -> list[dict[str, Any]]:
    source, _ = DATA[data]
    folder = WORK / data
    store = folder / "store"
    extract(source, store)
    extract(replace(source, teachers=replace(source.teachers, image=GRID)), store)
    write_vocabulary(store, ["train", "val"], folder / "vocabulary.json")
    wanted = {_name(setting, seed): (setting, seed) for seed in SEEDS for setting in SETTINGS}
    found = train_all({name: _parameters(data, *which) for name, which in wanted.items()}, store, folder)
    rows = [
        {"data": data, "setting": setting, "seed": seed, **_figures(found[_name(setting, seed)])}
        for setting, seed in wanted.values()
    ]
    for more in ("", " + CUSA"):
        for seed in SEEDS:
            pair = "+".join(str(folder / _name(f"{kind}{more}", seed)) for kind in ("SGR", "SAF"))
            out = folder / f"mean/{_name(f'SGRAF{more}', seed)}"
            arguments = ["--model", pair, "--task", "retrieval", "--store", str(store), "--out", str(out)]
            CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
            figures = json.loads((out / "figures.json").read_text())["results"][0]["figures"]
            rows.append(
                {"data": data, "setting": f"SGRAF{more}", "seed": seed, **_figures(next(iter(figures.values())))}
            )
    return rows


def _name(setting: str, seed: int) -> str:
    return f"{setting.replace(' ', '-').replace(',', '')}/{seed}"


def _sizes(data: str) -> Sgraf:
    vocabulary = str(WORK / data / "vocabulary.json")
    regions = teacher_slug(GRID, "image")
    return Sgraf(regions=regions, shape=[36, 1280], vocabulary=vocabulary, dim=128, word=64, similarity=32)


def _parameters(data: str, setting: str, seed: int) -> TrainParameters:
    kind, loss = SETTINGS[setting]
    source, train = DATA[data]
    model = f"experiments.regions:{data}" if kind == "one vector" else f"sgraf:{kind}"
    return TrainParameters(
        teachers=source.teachers,
        student=Student(model=model, sgraf=_sizes(data)),
        loss=loss,
        train=replace(train, seed=seed),
    )


def _figures(measured: dict[str, Any]) -> dict[str, float]:
    one, other = measured["image_to_text"], measured["text_to_image"]
    return {"RSUM": measured["RSUM"], "i2t R@1": one["R@1"], "t2i R@1": other["R@1"]}


if __name__ == "__main__":
    main()
