"""The CUSA paper's figures for CLIP (arXiv 2403.05261, AAAI 2024), to be set beside a run's.

Its data sets and students are others than most runs have: what can be compared everywhere is the difference that soft
labels make. Two figures each: fine-tuned without soft labels, and with CUSA.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from train.evaluation.paper import AVERAGE, COCO, ECCV, FLICKR, PAPER


class Reported(NamedTuple):
    """One figure of the paper, and where a run's counterpart stands among the flat figures of its training."""

    measure: str
    data: str
    ours: str
    base: float
    cusa: float


_MEASURES: Final = (
    ("RSUM", "COCO 5K", "RSUM", ("retrieval", COCO, "RSUM")),
    ("RSUM", "Flickr30K 1K", "RSUM", ("retrieval", FLICKR, "RSUM")),
    ("mAP@R, image→text", "ECCV Caption", "true · image→text · mAP@R", ("eccv", ECCV, "image_to_text", "mAP@R")),
    ("mAP@R, text→image", "ECCV Caption", "true · text→image · mAP@R", ("eccv", ECCV, "text_to_image", "mAP@R")),
    ("image R@1 by class", "mean of 4 sets", "image class R@1", ("image-retrieval", AVERAGE)),
    ("caption Spearman", "STS, mean of 7", "caption spearman", ("sts", AVERAGE)),
)


def reported(student: str) -> tuple[str, list[Reported]]:
    """Return the paper's model that is nearest to the student `open-clip:…`, and its figures."""
    name = "CLIP L/14@336" if "ViT-L-14-336" in student else "CLIP B/32"
    return name, [Reported(measure, data, ours, *PAPER[name][path]) for measure, data, ours, path in _MEASURES]
