"""The CUSA paper's figures for CLIP (arXiv 2403.05261, AAAI 2024), to be set beside a run's.

Its data sets and students are others than most runs have: what can be compared everywhere is the difference that soft
labels make. Two figures each: fine-tuned without soft labels, and with CUSA.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Reported(NamedTuple):
    """One figure of the paper, and where a run's counterpart stands among the flat figures of its training."""

    measure: str
    data: str
    ours: str
    base: float
    cusa: float


_MEASURES: Final = (
    ("RSUM", "COCO 5K", "RSUM"),
    ("RSUM", "Flickr30K 1K", "RSUM"),
    ("mAP@R, image→text", "ECCV Caption", "true · image→text · mAP@R"),
    ("mAP@R, text→image", "ECCV Caption", "true · text→image · mAP@R"),
    ("image R@1 by class", "mean of 4 sets", "image class R@1"),
    ("caption Spearman", "STS, mean of 7", "caption spearman"),
)
_BASE_32: Final = ((422.6, 429.7), (520.0, 526.3), (28.5, 29.6), (41.7, 45.2), (40.7, 46.5), (69.4, 73.2))
_LARGE_14: Final = ((469.6, 473.1), (554.5, 560.2), (32.8, 33.6), (45.5, 47.6), (57.4, 61.8), (71.9, 74.5))


def reported(student: str) -> tuple[str, list[Reported]]:
    """Return the paper's model that is nearest to the student `open-clip:…`, and its figures."""
    name, figures = ("CLIP L/14@336", _LARGE_14) if "ViT-L-14-336" in student else ("CLIP B/32", _BASE_32)
    return name, [Reported(*measure, *pair) for measure, pair in zip(_MEASURES, figures, strict=True)]
