"""The distribution of soft labels P against the student's Q, over one batch of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stores import Store
from stores.layout import teacher_slug
from stores.parameters import Loss, Teachers, TrainParameters
from train.losses.functional import cosine_similarity, mixed_targets, soft_alignment
from train.report.page.charts import Chart, histogram
from train.report.page.page_models import PageModel, dashed
from train.report.page.sample import ImageCaptionPairs, draw_pairs
from train.report.training_curves import Series

BINS: Final = 48
LARGEST: Final = 1024
"""Pairs of the batch at most: histograms of a million similarities are smooth."""
TICKS: Final = [(float(power), f"{10.0**power:g}×") for power in range(-4, 5)]
PANELS: Final = {
    "USA: images among images": "USA image",
    "USA: texts among texts": "USA text",
    "CSA: images to texts": "CSA",
    "CSA: texts to images": "CSA",
}
"""By panel, the temperature of Q."""
AT_START: Final = 0.45
"""The temperature of a model that has not learned one: where it would have started."""


class SoftLabels(NamedTuple):
    """What the page says of one batch."""

    size: int
    parameters: TrainParameters
    """Whose soft labels P are."""
    charts: list[Chart]
    models: list[PageModel]
    others: list[PageModel]
    """Models that were trained with soft labels other than P; the comparison would be unfair to them."""
    divergences: list[tuple[str, list[str]]]
    """By panel: KL(P ‖ Q) of every model, mean over the batch."""

    @property
    def at_start(self) -> list[tuple[str, str]]:
        """The models that have not learned all temperatures, and the terms that would have them."""
        learned = {model.name: model.tested.temperatures or {} for model in self.models}
        lacking = {name: {tau.split()[0] for tau in PANELS.values() if tau not in its} for name, its in learned.items()}
        return [(name, " and ".join(sorted(terms))) for name, terms in lacking.items() if terms]


def soft_labels(
    store: Store, split: str, parameters: TrainParameters, models: Sequence[PageModel]
) -> SoftLabels | None:
    """Return the distributions over a batch of the `split`; None where fewer than two pairs can be had.

    P are the soft labels of the `parameters`, Q of those `models` whose temperatures are known, and that were trained
    with no other soft labels.
    """
    pairs = draw_pairs(store, split, min(parameters.train.batch_size, LARGEST))
    pairs, images, texts = _features(store, split, parameters.teachers, pairs)
    size = len(pairs.images)
    if size < 2:
        return None
    loss = parameters.loss
    similarities = cosine_similarity(images, images), cosine_similarity(texts, texts)
    of_images, of_texts = mixed_targets(*similarities, loss.teacher_temperature, loss.mix, loss.soft_top_k)
    targets = dict(zip(PANELS, (of_images, of_texts, of_images, of_texts), strict=True))
    trained = [model for model in models if model.tested.temperatures is not None]
    known = [model for model in trained if _taught_by(model, loss)]
    others = [model for model in trained if not _taught_by(model, loss)]
    of_models = [_scaled(model, pairs) for model in known]
    charts, divergences = [], []
    for panel, target in targets.items():
        scores = [panels[panel] for panels in of_models]
        charts.append(_chart(panel, target, known, scores))
        divergences.append((panel, [f"{float(soft_alignment(one, target, 1.0)):.3f}" for one in scores]))
    return SoftLabels(size, parameters, charts, known, others, divergences)


def _taught_by(model: PageModel, loss: Loss) -> bool:
    """Return whether a model learned from the soft labels of `loss`, or from none."""
    settings = ("teacher_temperature", "mix", "soft_top_k")
    return model.plain or all(getattr(model.loss, name, None) == getattr(loss, name) for name in settings)


def _features(
    store: Store, split: str, teachers: Teachers, pairs: ImageCaptionPairs
) -> tuple[ImageCaptionPairs, Tensor, Tensor]:
    """Return the features of the pairs, (n, Di) and (n, Dt), without pairs on which a teacher failed."""
    first = store.rows(split, "sample")[0], store.rows(split, "caption")[0]
    images = store.features(teacher_slug(teachers.image, "image")).gather(pairs.images + first[0])
    texts = store.features(teacher_slug(teachers.text, "text")).gather(pairs.captions + first[1])
    good = images.any(axis=1) & texts.any(axis=1)
    kept = ImageCaptionPairs(pairs.images[good], pairs.captions[good])
    return kept, *(torch.from_numpy(rows[good]).float() for rows in (images, texts))  # type: ignore[return-value]


def _scaled(model: PageModel, pairs: ImageCaptionPairs) -> dict[str, Tensor]:
    """Return a model's similarities by panel, (n, n), over its temperatures."""
    temperatures = model.tested.temperatures or {}
    cross = model.tested.similarities.block(pairs.images, pairs.captions)
    uni_image, uni_text = model.tested.images[pairs.images], model.tested.texts[pairs.captions]
    scores = (cosine_similarity(uni_image, uni_image), cosine_similarity(uni_text, uni_text), cross, cross.T)
    return {
        panel: score / temperatures.get(tau, AT_START)
        for (panel, tau), score in zip(PANELS.items(), scores, strict=True)
    }


def _chart(panel: str, target: Tensor, models: Sequence[PageModel], scores: Sequence[Tensor]) -> Chart:
    values = {"P, the teachers’": _others(target)}
    for model, its_scores in zip(models, scores, strict=True):
        values[f"Q, {model.name}"] = _others(torch.softmax(its_scores, dim=1))
    kinds = ["area", *("dashed" if model is dashed(models) else "line" for model in models)]
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, (0.002, 0.998))
    edges = np.linspace(low - 0.05, high + 0.05, BINS + 1)
    series = []
    for number, (kind, (name, logs)) in enumerate(zip(kinds, values.items(), strict=True)):
        counts, _ = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)
        shares = 100 * counts / len(logs)
        series.append(Series(name=name, x=edges, y=shares, colour=number - 1 if number else 5, kind=kind))
    spreads = (f"{name}: standard deviation {logs.std():.2f} decades" for name, logs in values.items())
    return histogram(panel, edges, series, TICKS, f"Histograms of {panel}. {'; '.join(spreads)}.")


def _others(probabilities: Tensor) -> NDArray[Any]:
    """Return the off-diagonal entries in multiples of 1/n, as powers of ten: (n · (n - 1),)."""
    n = len(probabilities)
    beside = ~torch.eye(n, dtype=torch.bool)
    times = probabilities.double()[beside] * n
    # Labels of zero, beyond the nearest k, have no logarithm; they are shown at the left end.
    logs: NDArray[Any] = times.clamp(min=1e-4).log10().numpy()
    return logs
