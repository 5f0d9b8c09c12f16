"""The CUSA paper's figures for CLIP (arXiv 2403.05261, AAAI 2024), to be set beside ours.

They are shown only where the data set and the protocol are the paper's. Two figures each: fine-tuned without soft
labels, and with CUSA.
"""

from __future__ import annotations

from typing import Final

FigurePath = tuple[str, ...]
"""A task, a data set, and the names of a figure."""

COCO: Final = "COCO 5K"
FLICKR: Final = "Flickr30K 1K"
ECCV: Final = "ECCV Caption"
AVERAGE: Final = "average"

PAPER: Final[dict[str, dict[FigurePath, tuple[float, float]]]] = {
    "CLIP B/32": {
        ("retrieval", COCO, "RSUM"): (422.6, 429.7),
        ("retrieval", FLICKR, "RSUM"): (520.0, 526.3),
        ("eccv", COCO, "RSUM"): (422.6, 429.7),
        ("eccv", ECCV, "image_to_text", "mAP@R"): (28.5, 29.6),
        ("eccv", ECCV, "text_to_image", "mAP@R"): (41.7, 45.2),
        ("image-retrieval", AVERAGE): (40.7, 46.5),
        ("sts", AVERAGE): (69.4, 73.2),
    },
    "CLIP L/14@336": {
        ("retrieval", COCO, "RSUM"): (469.6, 473.1),
        ("retrieval", FLICKR, "RSUM"): (554.5, 560.2),
        ("eccv", COCO, "RSUM"): (469.6, 473.1),
        ("eccv", ECCV, "image_to_text", "mAP@R"): (32.8, 33.6),
        ("eccv", ECCV, "text_to_image", "mAP@R"): (45.5, 47.6),
        ("image-retrieval", AVERAGE): (57.4, 61.8),
        ("sts", AVERAGE): (71.9, 74.5),
    },
}
