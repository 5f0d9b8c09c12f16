"""The distribution of soft labels P against the student's Q, over one batch of pairs that no training has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stores import Store
from stores.layout import teacher_slug
from stores.parameters import TrainParameters
from train.losses import cosine_similarity, mixed_targets, soft_alignment
from train.page.charts import Chart, Series, histogram
from train.page.run_files import Run, Trained
from train.page.sample import Pairs, Tested, draw_pairs

BINS: Final = 48
LARGEST: Final = 1024
"""Pairs of the batch at most: histograms of a million similarities are smooth."""
TICKS: Final = [(float(power), f"{10.0**power:g}×") for power in range(-4, 5)]
PANELS: Final = {
    "USA: images among images": "image",
    "USA: texts among texts": "text",
    "CSA: images to texts": "cross",
    "CSA: texts to images": "cross",
}
"""By panel, the temperature of Q."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What the page says of one batch."""

    size: int
    charts: list[Chart]
    divergences: list[tuple[str, list[str]]]
    """By panel: KL(P ‖ Q) of every training, mean over the batch."""


def soft_labels(store: Store, split: str, run: Run, tested: Mapping[str, Tested]) -> SoftLabels | None:
    """Return the distributions over a batch of the `split`; None where fewer than two pairs can be had."""
    parameters = run.parameters
    pairs = draw_pairs(store, split, min(parameters.train.batch_size, LARGEST))
    pairs, images, texts = _teachers(store, split, parameters, pairs)
    size = len(pairs.images)
    if size < 2:
        return None
    loss = parameters.loss
    similarities = cosine_similarity(images, images), cosine_similarity(texts, texts)
    of_images, of_texts = mixed_targets(*similarities, loss.teacher_temperature, loss.mix, loss.soft_top_k)
    targets = dict(zip(PANELS, (of_images, of_texts, of_images, of_texts), strict=True))
    of_trainings = {t.spoken: _scaled(t, tested[t.title], pairs) for t in run.trainings}
    charts, divergences = [], []
    for panel, target in targets.items():
        q = {name: panels[panel] for name, panels in of_trainings.items()}
        charts.append(_chart(panel, target, q))
        found = [float(soft_alignment(scores, target, 1.0)) for scores in q.values()]
        divergences.append((panel, [f"{value:.3f}" for value in found]))
    return SoftLabels(size=size, charts=charts, divergences=divergences)


def _teachers(store: Store, split: str, parameters: TrainParameters, pairs: Pairs) -> tuple[Pairs, Tensor, Tensor]:
    """Return the features of the pairs, (n, Di) and (n, Dt), without pairs on which a teacher failed."""
    named = (parameters.teachers.image, parameters.teachers.text)
    first = store.rows(split, "image")[0], store.rows(split, "text")[0]
    images = store.features(teacher_slug(named[0], "image")).gather(pairs.images + first[0])
    texts = store.features(teacher_slug(named[1], "text")).gather(pairs.captions + first[1])
    good = images.any(axis=1) & texts.any(axis=1)
    kept = Pairs(pairs.images[good], pairs.captions[good])
    return kept, *(torch.from_numpy(rows[good]).float() for rows in (images, texts))  # type: ignore[return-value]


def _scaled(trained: Trained, tested: Tested, pairs: Pairs) -> dict[str, Tensor]:
    """Return a training's similarities by panel, (n, n), over the temperatures of its best epoch."""
    embeddings = tested.embeddings
    images, texts = tested.cross_modal()
    with torch.inference_mode():
        cross = (tested.similarity or cosine_similarity)(images[pairs.images], texts[pairs.captions]).float().cpu()
    uni_image, uni_text = embeddings.uni_image[pairs.images], embeddings.uni_text[pairs.captions]
    scores = (cosine_similarity(uni_image, uni_image), cosine_similarity(uni_text, uni_text), cross, cross.T)
    return {
        panel: score / trained.best[f"temperature/{tau}"]
        for (panel, tau), score in zip(PANELS.items(), scores, strict=True)
    }


def _chart(panel: str, target: Tensor, q: Mapping[str, Tensor]) -> Chart:
    values = {"P, the teachers’": _others(target)}
    values |= {f"Q, {name}": _others(torch.softmax(scores, dim=1)) for name, scores in q.items()}
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, (0.002, 0.998))
    edges = np.linspace(low - 0.05, high + 0.05, BINS + 1)
    series = []
    for number, (name, logs) in enumerate(values.items()):
        counts, _ = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)
        kind = "area" if not number else "dashed" if number < len(values) - 1 else "line"
        shares = 100 * counts / len(logs)
        series.append(Series(name=name, x=edges, y=shares, colour=(5, 0, 1)[number], kind=kind))
    spreads = (f"{name}: standard deviation {logs.std():.2f} decades" for name, logs in values.items())
    return histogram(panel, edges, series, TICKS, f"Histograms of {panel}. {'; '.join(spreads)}.")


def _others(probabilities: Tensor) -> NDArray[Any]:
    """Return how many times 1/n each entry beside the diagonal is, as a power of ten: (n · (n - 1),)."""
    n = len(probabilities)
    beside = ~torch.eye(n, dtype=torch.bool)
    times = probabilities.double()[beside] * n
    # Labels of zero, beyond the nearest k, would have no place; they stand at the left end.
    logs: NDArray[Any] = times.clamp(min=1e-4).log10().numpy()
    return logs
