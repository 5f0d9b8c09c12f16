"""Measuring on a store's split: across modalities, by its labels, and by its graded caption pairs.

A student embeds the split once for all tasks, by the very path that a training measures itself by, so that the figures
are those of its metrics.json. A teacher's features are taken from the store where it has been extracted there.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.markup import escape
from rich.status import Status

from stores.console import console, progress_bar
from stores.errors import CusaError
from stores.layout import teacher_slug
from stores.parameters import Evaluation
from train.evaluation.data import COCO_TEST, FOLDS, DataSets
from train.evaluation.eccv import coco_ids, eccv_caption
from train.evaluation.embed import SplitEncoded, embed_split
from train.evaluation.evaluate import (
    Evaluated,
    caption_pairs,
    compare_split,
    cross_modal,
    evaluate,
    ownership,
    true_relevance,
)
from train.evaluation.image_retrieval import measure_images, recall_at_1
from train.evaluation.labelled_images import split_images
from train.evaluation.models import StudentModel, TeacherModel
from train.evaluation.paper import COCO, ECCV
from train.evaluation.result import DataSetError, Result
from train.evaluation.similarities import Similarities
from train.evaluation.sts import correlate, embed_texts

ELSEWHERE: Final = {"true_relevance", "image_class_R@1", "caption_spearman"}
"""What `evaluate` measures for other tasks than retrieval."""


class StudentOnStore:
    """A student's embeddings and figures on a split."""

    def __init__(
        self,
        model: StudentModel,
        data: DataSets,
        accelerator: Accelerator,
        batch_size: int,
        workers: int,
        folder: Path,
    ) -> None:
        """`folder` is where an interrupted scoring goes on."""
        self.model, self._folder = model, folder
        self._model, self._data, self._accelerator = model.aligned, data, accelerator
        self._name, self._batch_size, self._workers = model.name, batch_size, workers

    @property
    def compared(self) -> tuple[SplitEncoded, Similarities] | None:
        """The split's encoded items and how alike they are, where tasks have needed both."""
        held = vars(self)
        return (held["_encoded"], held["_similarities"]) if "_similarities" in held else None

    def retrieval(self, result: Result) -> None:
        """Add R@K both ways, RSUM and median ranks; COCO 1K too, where it is COCO."""
        title = self._data.title
        figures, faults = self._evaluated
        if "retrieval" in faults:
            raise DataSetError(f"{title}: {faults['retrieval']}")
        result.figures[title] = {name: value for name, value in figures.items() if name not in ELSEWHERE}
        result.counts[title] = self._sizes
        if self._sizes["images"] == COCO_TEST:
            own = ownership(self._data.opened, self._data.split)
            with self._ranking():
                folds = cross_modal(self._similarities, own, folds=FOLDS)
            name = "COCO 1K" if title == COCO else f"{title} in fifths"
            result.figures[f"{name} (mean of {FOLDS} folds)"] = folds

    def eccv(self, result: Result) -> None:
        """Add mAP@R, R-Precision and R@1 by the store's relevance; of COCO ECCV Caption, CxC and COCO 5K, by its ids.

        Raises:
            DataSetError: the store carries no relevance, and its split is not COCO's test split.
        """
        carried = true_relevance(self._data.opened, self._data.split) is not None
        if carried:
            result.figures[self._data.title] = self._figure("true_relevance")
            result.counts[self._data.title] = self._sizes
        if carried and self._data.title != COCO and not self._data.coco_annotations:
            return
        ids = coco_ids(self._data.opened, self._data.split, self._data.annotations)
        with self._ranking():
            found = eccv_caption(self._similarities, *ids)
        found["coco_5k"]["RSUM"] = sum(sum(figures.values()) for figures in found["coco_5k"].values())
        result.figures.update({ECCV: found["eccv_caption"], "CxC": found["cxc"], COCO: found["coco_5k"]})

    def image_retrieval(self, result: Result) -> None:
        """Add the R@1 by the split's labels."""
        images = split_images(self._data.opened, self._data.split)
        result.figures[self._data.title] = self._figure("image_class_R@1")
        result.counts[self._data.title] = {"images": len(images.labels), "classes": len(np.unique(images.labels))}

    def sts(self, result: Result) -> None:
        """Add the correlation with the split's graded caption pairs."""
        first, _, _ = graded_pairs(self._data)
        result.figures[self._data.title] = self._figure("caption_spearman")
        result.counts[self._data.title] = {"pairs": len(first)}

    @cached_property
    def _similarities(self) -> Similarities:
        return compare_split(self._model, self._encoded, self._folder)

    @cached_property
    def _encoded(self) -> SplitEncoded:
        store, split, size = self._data.opened, self._data.split, self._batch_size
        levels = [given.level for given in self._model.interface.inputs.values()]
        batches = sum(-(-len(store.rows(split, level)) // size) for level in levels)
        with progress_bar() as progress:
            task = progress.add_task(escape(f"{self._name}: {self._data.title}, batches"), total=batches, note="")
            try:
                return embed_split(
                    self._model, store, split, self._accelerator, size, self._workers, lambda: progress.advance(task)
                )
            except torch.OutOfMemoryError:
                raise CusaError(
                    f"{self._name}: the device has no room for batches of {size:,}. Say a smaller --batch-size."
                ) from None

    @cached_property
    def _evaluated(self) -> Evaluated:
        encoded = self._encoded
        with self._ranking():
            settings = self.model.parameters.eval if self.model.parameters else Evaluation()
            store, split = self._data.opened, self._data.split
            return evaluate(self._model, encoded, lambda: self._similarities, store, split, settings, self._folder)

    def _figure(self, name: str) -> Any:
        figures, faults = self._evaluated
        if name in faults:
            raise DataSetError(f"{self._data.title}: {faults[name]}")
        return figures[name]

    @property
    def _sizes(self) -> dict[str, int]:
        images, captions = self._similarities.shape
        return {"images": images, "captions": captions}

    def _ranking(self) -> Status:
        """Show that rankings, which are one piece of work, are being made."""
        return console.status(escape(f"{self._name}: ranking {self._data.title}"))


class TeacherOnStore:
    """A teacher's figures on a split, within its modality."""

    def __init__(self, model: TeacherModel, data: DataSets, threads: int) -> None:
        self._model, self._data, self._threads = model, data, threads

    def image_retrieval(self, result: Result) -> None:
        """Add the R@1 by the split's labels."""
        images = split_images(self._data.opened, self._data.split)
        rows = self._data.opened.rows(self._data.split, "sample")
        if (found := self._extracted(rows)) is None:
            measure_images(self._model, images, result, self._threads)
            return
        features, valid = found
        labels = images.labels[valid]
        result.figures[self._data.title] = recall_at_1(features[valid], labels)
        result.counts[self._data.title] = {
            "images": len(labels),
            "classes": len(np.unique(labels)),
            "broken": int((~valid).sum()),
        }

    def sts(self, result: Result) -> None:
        """Add the correlation with the split's graded caption pairs."""
        store, title = self._data.opened, self._data.title
        first, second, gold = graded_pairs(self._data)
        rows = store.rows(self._data.split, "caption")
        asked, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        if (found := self._extracted(rows[asked])) is None:
            texts = store.captions["text"].take(rows[asked]).to_pylist()
            found = embed_texts(self._model, texts, title), np.ones(len(texts), dtype=np.bool_)
        features, valid = found
        one, other = places.reshape(2, len(gold))
        kept = valid[one] & valid[other]
        result.figures[title] = correlate(features[one[kept]], features[other[kept]], gold[kept], title)
        result.counts[title] = {"pairs": int(kept.sum())}

    def _extracted(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return this very teacher's features of rows in the store, and which are valid; None if it has none."""
        store, slug = self._data.opened, teacher_slug(self._model.name, self._model.modality)
        extracted = store.manifest.teachers.get(slug)
        if extracted is None or extracted.fingerprint != self._model.fingerprint:
            return None
        features = store.features(slug)
        return features.gather(rows).astype(np.float32), features.valid[rows]


def graded_pairs(data: DataSets) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the split's graded caption pairs: places of the first and the second, and their similarity.

    Raises:
        DataSetError: it has none.
    """
    pairs = caption_pairs(data.opened, data.split)
    if pairs is None:
        raise DataSetError(f"{data.title}: the store has no graded caption pairs there, so sts is not measured on it.")
    return pairs
