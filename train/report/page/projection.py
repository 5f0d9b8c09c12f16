"""The t-SNE of uni-modal embeddings (CUSA, figure 4): what a model places together.

Images and texts live in spaces of their own, where USA works; each has a picture, for every model of the page. The
points are the same in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional

from stores import Store
from stores.columns import Column
from train.report.page.charts import Chart, scatter
from train.report.page.page_models import PageModel
from train.report.page.sample import SEED, ImageCaptionPairs, draw_pairs

POINTS: Final = 300
DRAWN: Final = 10_000
"""Images of the split that are looked at for them."""
FEWEST: Final = 8
"""Fewer points show nothing."""
CLASSES: Final = 5
"""The most common classes that have a colour of their own; the others share one."""


def projections(store: Store, split: str, models: Sequence[PageModel]) -> list[Chart]:
    """Return a chart for every modality and model; none where the split is too small."""
    pairs, groups, names = _points(store, split)
    if len(pairs.images) < FEWEST:
        return []
    charts = []
    for modality in ("images", "texts"):
        for model in models:
            rows = model.tested.images[pairs.images] if modality == "images" else model.tested.texts[pairs.captions]
            alt = f"{len(rows)} points, one for each of the {modality}; near points are alike to the model."
            charts.append(scatter(f"{modality.capitalize()}, {_named(model)}", _project(rows), groups, names, alt))
    return charts


def _named(model: PageModel) -> str:
    if model.objective is None:
        return model.name
    taught = " and ".join(term.name for term in model.objective.terms if term.unimodal)
    return f"{model.name} ({f'with {taught}' if taught else 'without uni-modal heads'})"


def _points(store: Store, split: str) -> tuple[ImageCaptionPairs, NDArray[np.int64], dict[int, str]]:
    """Return the pairs to show, each one's colour (n,), and what the colours mean; the last is of all other classes.

    Images of the most common classes come first: with many classes, a plain draw has too few of each.
    """
    first = store.rows(split, "sample")[0]
    pairs = draw_pairs(store, split, DRAWN)
    labels = Column(store.samples["label"]).values(pairs.images + first)
    common = [label for label, _ in Counter(label for label in labels if label is not None).most_common(CLASSES)]
    numbers = {label: number for number, label in enumerate(common)}
    groups = np.array([numbers.get(label, CLASSES) for label in labels], dtype=np.int64)
    kept = np.sort(np.argsort(groups == CLASSES, kind="stable")[:POINTS])
    names = {**dict(enumerate(common)), CLASSES: "other classes" if common else "all"}
    return ImageCaptionPairs(pairs.images[kept], pairs.captions[kept]), groups[kept], names


def _project(rows: Tensor) -> NDArray[np.float64]:
    """Return (n, D) embeddings in the plane, (n, 2), by their cosine distances."""
    unit = functional.normalize(rows.double()).numpy()
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # For unit vectors the squared Euclidean distance is proportional to the cosine distance.
    # Where all rows are equal, there is no principal axis to start from.
    start = "pca" if np.ptp(unit, axis=0).max() > 1e-6 else "random"
    found = TSNE(2, perplexity=perplexity, init=start, learning_rate="auto", random_state=SEED).fit_transform(unit)
    points: NDArray[np.float64] = np.asarray(found, dtype=np.float64)
    return points
