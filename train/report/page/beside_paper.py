"""A run's figures beside those that the CUSA paper has for CLIP (arXiv 2403.05261, AAAI 2024).

Its data sets and students are others than most runs have: what can be compared everywhere is the difference that soft
labels make.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from train.evaluation.figure_tables import FigureRow
from train.evaluation.paper import AVERAGE, COCO, ECCV, FLICKR, PAPER
from train.report.page.run_files import FinishedRun
from train.report.results import flat_figures

_MEASURES: Final = (
    ("RSUM", "COCO 5K", "RSUM", ("retrieval", COCO, "RSUM")),
    ("RSUM", "Flickr30K 1K", "RSUM", ("retrieval", FLICKR, "RSUM")),
    ("mAP@R, image→text", "ECCV Caption", "true · image→text · mAP@R", ("eccv", ECCV, "image_to_text", "mAP@R")),
    ("mAP@R, text→image", "ECCV Caption", "true · text→image · mAP@R", ("eccv", ECCV, "text_to_image", "mAP@R")),
    ("image R@1 by class", "mean of 4 sets", "image class R@1", ("image-retrieval", AVERAGE)),
    ("caption Spearman", "STS, mean of 7", "caption spearman", ("sts", AVERAGE)),
)
"""By measure: the paper's data, the run's counterpart among its flat figures, the paper's figure."""


class PaperComparison(NamedTuple):
    """One of the paper's figures with its counterpart: fine-tuned without soft labels, and with CUSA."""

    measure: str
    data: str
    ours: FigureRow
    paper: FigureRow


def beside_the_paper(run: FinishedRun) -> tuple[str, list[PaperComparison]]:
    """Return the paper's nearest model, and its figures beside those that the run has."""
    model = "CLIP L/14@336" if "ViT-L-14-336" in run.parameters.student.model else "CLIP B/32"
    flat = [flat_figures(trained.figures) for trained in run.trainings]
    rows = []
    for measure, data, name, path in _MEASURES:
        ours = FigureRow(name, [found[name] for found in flat if name in found])
        rows.append(PaperComparison(measure, data, ours, FigureRow(name, PAPER[model][path])))
    return model, rows
