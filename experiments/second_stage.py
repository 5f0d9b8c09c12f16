"""Does a second stage gain over a first stage alone that is trained for as long? Scenes, three seeds.

`python -m experiments.second_stage` trains, one after another, the small fusion student (`models.small_fusion`, recipe
x2vlm) and then the embedded student alone for as many epochs as fit into the CPU seconds that the former took. How many
of the nearest are reranked is chosen by RSUM on the validation split. Both stages of the one and the other alone go to
docs/second-stage.csv, with the seconds of each. A training that was stopped starts anew, since it is timed.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pipeline.extract import extract
from stores import ExtractParameters, Store, TrainParameters
from stores.atomic import write_json, write_text
from stores.parameters import Data, Evaluation, Loss, Rerank, Scenes, Student, Train
from train.evaluation.data import DataSets
from train.evaluation.measure import measure
from train.evaluation.models import load_model
from train.evaluation.second_stage import AtDepth
from train.fit.processes import make_accelerator
from train.run import run

WORK, TABLE = Path("artifacts/second-stage"), Path("docs/second-stage.csv")
SOURCE: Final = ExtractParameters(data=Data(scenes=Scenes(train=1000, val=200, test=400)))
SEEDS: Final = (0, 1, 2)
EPOCHS: Final = 6
RERANK: Final = Rerank(k=64)
ALONE: Final = TrainParameters(
    loss=Loss(alpha=0, beta=0), train=Train(epochs=EPOCHS, precision="fp32", device="cpu", compare=False)
)
FUSION: Final = TrainParameters(
    student=Student(model="models.small_fusion:small_fusion"),
    loss=Loss(alpha=0, beta=0, recipe="x2vlm"),
    train=ALONE.train,
    eval=Evaluation(rerank=RERANK),
)


def main() -> None:
    """Make the store, train everything, and write down what each reaches."""
    store = WORK / "store"
    extract(SOURCE, store)
    rows = [row for seed in SEEDS for row in _rows(store, seed)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(TABLE, text.getvalue())


def _rows(store: Path, seed: int) -> list[dict[str, Any]]:
    """Return what the second stage, the first before it, and the first alone reach with a seed."""
    both = _trained(FUSION, store, WORK / f"fusion/{seed}", seed, EPOCHS)
    epoch = _trained(ALONE, store, WORK / f"short/{seed}", seed, EPOCHS)["seconds"] / EPOCHS
    epochs = max(1, round(both["seconds"] / epoch))
    alone = _trained(ALONE, store, WORK / f"alone/{seed}", seed, epochs)
    validated, tested = (_depths(WORK / f"fusion/{seed}", store, split) for split in ("val", "test"))
    k = max((depth for depth in validated if depth), key=lambda depth: validated[depth].rsum)
    shared = {"seed": seed, "epochs": EPOCHS, "seconds": both["seconds"]}
    images, texts = alone["figures"]["image_to_text"], alone["figures"]["text_to_image"]
    found = {"RSUM": alone["figures"]["RSUM"], "i2t R@1": images["R@1"], "t2i R@1": texts["R@1"]}
    return [
        {"student": "two stages", "k": k, **shared, **_figures(tested[k])},
        {"student": "its first stage", "k": 0, **shared, **_figures(tested[0])},
        {"student": "first stage alone", "k": 0, "seed": seed, "epochs": epochs, "seconds": alone["seconds"], **found},
    ]


def _trained(parameters: TrainParameters, store: Path, folder: Path, seed: int, epochs: int) -> dict[str, Any]:
    """Return the figures of a training, and the CPU seconds of it and its measuring; of one that is finished, again."""
    note = folder.with_suffix(".json")
    if note.exists():
        found: dict[str, Any] = json.loads(note.read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    settings = replace(parameters, train=replace(parameters.train, seed=seed, epochs=epochs))
    started = time.process_time()
    (figures,) = run(settings, Store.open(store), folder).values()
    found = {"seconds": time.process_time() - started, "figures": figures}
    write_json(note, found)
    return found


def _depths(folder: Path, store: Path, split: str) -> Mapping[int, AtDepth]:
    """Return what each k gives on a split."""
    data = DataSets(store=store, split=split, images={}, sts=None, coco_annotations=None)
    depths: dict[str, list[AtDepth]] = {}
    model = load_model(str(folder), device="cpu", precision="fp32")
    accelerator = make_accelerator(FUSION)
    how = accelerator, 256, 0, folder.with_name(f"{folder.name}-{split}"), lambda *_: None, RERANK, depths
    for _ in measure([model], ["retrieval"], data, *how):
        pass
    (table,) = depths.values()
    return {one.k: one for one in table}


def _figures(found: AtDepth) -> dict[str, float]:
    images, texts = found.recalls
    return {"RSUM": found.rsum, "i2t R@1": images["R@1"], "t2i R@1": texts["R@1"]}


if __name__ == "__main__":
    main()
