"""The figures of a finished run: their table, a column per training, and those that the CUSA paper has for CLIP."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stores.errors import DamagedRunError
from stores.json_objects import parsed_object
from train.evaluation.figure_tables import FigureRow, FigureTable, flattened, spoken
from train.evaluation.paper import AVERAGE, COCO, ECCV, FLICKR, PAPER

_MEASURES: Final = (
    ("RSUM", "COCO 5K", "RSUM", ("retrieval", COCO, "RSUM")),
    ("RSUM", "Flickr30K 1K", "RSUM", ("retrieval", FLICKR, "RSUM")),
    ("mAP@R, image→text", "ECCV Caption", "true · image→text · mAP@R", ("eccv", ECCV, "image_to_text", "mAP@R")),
    ("mAP@R, text→image", "ECCV Caption", "true · text→image · mAP@R", ("eccv", ECCV, "text_to_image", "mAP@R")),
    ("image R@1 by class", "mean of 4 sets", "image class R@1", ("image-retrieval", AVERAGE)),
    ("caption Spearman", "STS, mean of 7", "caption spearman", ("sts", AVERAGE)),
)
"""By measure: the paper's data, the run's counterpart among its flat figures, the paper's figure."""


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics.json of a run.

    Raises:
        DamagedRunError: the run has not finished, or its figures are not as cusa-train wrote them.
    """
    path = folder / "metrics.json"
    try:
        metrics = parsed_object(path.read_bytes())
    except (OSError, ValueError):
        raise DamagedRunError(path=path, expected="the figures of a finished run", advice="Run cusa-train.") from None
    if not metrics or not all(isinstance(found, dict) for found in metrics.values()):
        raise DamagedRunError(path=path, found=metrics, expected="figures by training")
    return metrics


def run_table(caption: str, figures: Mapping[str, dict[str, Any]], left_out: Collection[str] = ()) -> FigureTable:
    """Return the figures of a run's trainings, by what the table calls each; rows in `left_out` are not shown."""
    flat = [flat_figures(found) for found in figures.values()]
    # What could not be measured of one training may be measured of the other.
    names = dict.fromkeys(name for found in flat for name in found if name not in left_out)
    rows = [FigureRow(name, [found.get(name) for found in flat]) for name in names]
    return FigureTable(caption, list(figures), rows)


def flat_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Return a training's figures under the names that they have in its table, such as "image→text · R@1"."""
    flat = flattened(figures)
    return {" · ".join(map(spoken, path)).replace("true relevance", "true"): value for path, value in flat}


class PaperComparison(NamedTuple):
    """One of the paper's figures with its counterpart: fine-tuned without soft labels, and with CUSA."""

    measure: str
    data: str
    ours: FigureRow
    paper: FigureRow


def beside_the_paper(student: str, trainings: Sequence[dict[str, Any]]) -> tuple[str, list[PaperComparison]]:
    """Return the paper's model nearest to a `student`, and its figures beside those that the trainings have.

    Most runs have other data sets and students: what compares everywhere is the difference that soft labels make.
    """
    model = "CLIP L/14@336" if "ViT-L-14-336" in student else "CLIP B/32"
    flat = [flat_figures(figures) for figures in trainings]
    rows = []
    for measure, data, name, path in _MEASURES:
        ours = FigureRow(name, [found[name] for found in flat if name in found])
        rows.append(PaperComparison(measure, data, ours, FigureRow(name, PAPER[model][path])))
    return model, rows
