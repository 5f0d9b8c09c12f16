"""Measuring on a store's split: across modalities, by its labels, and by its graded caption pairs.

A student embeds the split once for all tasks, by the very path that a training measures itself by, so that the figures
are those of its metrics.json. A teacher's features are taken from the store where it has been extracted there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.markup import escape
from rich.status import Status

from models.aligned import AlignedModel
from models.trained import run_path
from stores import CusaError, Store
from stores.console import console, progress_bar
from stores.layout import teacher_slug
from stores.parameters import Evaluation, Rerank
from stores.plugins import recorded_in
from train.evaluation.data import COCO_TEST, FOLDS, DataSets
from train.evaluation.eccv import coco_ids, eccv_caption
from train.evaluation.embed import SplitEncoded, embed_split
from train.evaluation.evaluate import (
    Evaluated,
    caption_pairs,
    compare_split,
    cross_modal,
    crossed,
    evaluate,
    ownership,
    those_present,
    true_relevance,
)
from train.evaluation.image_folders import LabelledImages
from train.evaluation.image_retrieval import measure_images, recall_at_1
from train.evaluation.kept_parts import parts_policy
from train.evaluation.models import StudentModel, TeacherModel
from train.evaluation.paper import COCO, ECCV
from train.evaluation.reranking import RerankedSimilarities
from train.evaluation.result import DataSetError, Result
from train.evaluation.second_stage import AtDepth, SecondStage, by_depth
from train.evaluation.similarities import Similarities
from train.evaluation.sts import correlate, embed_texts

ELSEWHERE: Final = {"true_relevance", "image_class_R@1", "caption_spearman"}
"""What `evaluate` measures for other tasks than retrieval."""


@dataclass(frozen=True)
class StudentOnStore:
    """A student's embeddings and figures on a split."""

    model: StudentModel
    data: DataSets
    accelerator: Accelerator
    batch_size: int
    workers: int
    folder: Path
    """Where an interrupted scoring goes on."""
    rerank: Rerank | None = None
    """The second stage; None: that of its training, if it had one."""

    @property
    def compared(self) -> tuple[SplitEncoded, Similarities] | None:
        """The split's encoded items and how alike they are, where tasks have needed both."""
        held = vars(self)
        return (held["_encoded"], held["_similarities"]) if "_similarities" in held else None

    def retrieval(self, result: Result) -> None:
        """Add R@K both ways, RSUM and median ranks; COCO 1K too, where it is COCO."""
        title, figures = self.data.title, self._figures("retrieval")
        result.figures[title] = {name: value for name, value in figures.items() if name not in ELSEWHERE}
        result.counts[title] = self._sizes
        if self._second and "reranked" not in figures:
            result.messages.append(f"{title}: not reranked: {self._evaluated.faults['reranked']}")
        if self._sizes["images"] == COCO_TEST:
            own = ownership(self.data.opened, self.data.split)
            name = "COCO 1K" if title == COCO else f"{title} in fifths"
            for stage, found in self._stages.items():
                with self._ranking():
                    result.figures[f"{name} (mean of {FOLDS} folds){stage}"] = cross_modal(found, own, folds=FOLDS)

    def eccv(self, result: Result) -> None:
        """Add mAP@R, R-Precision and R@1 by the store's relevance; of COCO ECCV Caption, CxC and COCO 5K, by its ids.

        Raises:
            DataSetError: the store carries no relevance, and its split is not COCO's test split.
        """
        carried = true_relevance(self.data.opened, self.data.split) is not None
        if carried:
            result.figures[self.data.title] = self._figures("true_relevance")["true_relevance"]
            result.counts[self.data.title] = self._sizes
        if carried and self.data.title != COCO and not self.data.coco_annotations:
            return
        ids = coco_ids(self.data.opened, self.data.split, self.data.annotations)
        for stage, similar in self._stages.items():
            with self._ranking():
                found = eccv_caption(similar, *ids)
            found["coco_5k"]["RSUM"] = sum(sum(figures.values()) for figures in found["coco_5k"].values())
            named = {ECCV: found["eccv_caption"], "CxC": found["cxc"], COCO: found["coco_5k"]}
            result.figures.update({f"{name}{stage}": figures for name, figures in named.items()})

    def image_retrieval(self, result: Result) -> None:
        """Add the R@1 by the split's labels."""
        images = split_images(self.data.opened, self.data.split)
        result.figures[self.data.title] = self._figures("image_class_R@1")["image_class_R@1"]
        result.counts[self.data.title] = {"images": len(images.labels), "classes": len(np.unique(images.labels))}

    def sts(self, result: Result) -> None:
        """Add the correlation with the split's graded caption pairs."""
        first, _, _ = graded_pairs(self.data)
        result.figures[self.data.title] = self._figures("caption_spearman")["caption_spearman"]
        result.counts[self.data.title] = {"pairs": len(first)}

    @cached_property
    def _similarities(self) -> Similarities:
        scorer = self._second.first_scorer(self.model.aligned) if self._second else None
        return compare_split(self.model.aligned, self._encoded, self.folder, scorer=scorer)

    @property
    def depths(self) -> list[AtDepth]:
        """What the second stage gives by how many it reranks, where tasks have needed it; else nothing."""
        if "_reranked" not in vars(self):
            return []
        split = self.data.opened, self.data.split
        return by_depth(*those_present(self.model.aligned, self._encoded, self._reranked, *split))

    @property
    def _stages(self) -> dict[str, Similarities]:
        """By what a figure's name has after it."""
        both: dict[str, Similarities] = {"": self._similarities}
        reranks = self._second and "reranked" in self._evaluated.figures
        return both | {", reranked": self._reranked} if reranks else both

    @cached_property
    def _reranked(self) -> RerankedSimilarities:
        if self._second is None:
            raise TypeError("There is no second stage.")
        encoded = self._second.encoded(self._encoded, self._embedded)
        return self._second.over(self._similarities, encoded, self.folder)

    @cached_property
    def _second(self) -> SecondStage | None:
        rerank = self._settings.rerank
        with recorded_in(None if self.rerank else run_path(self.model.name)):
            return SecondStage(rerank, self.model.aligned, self.accelerator) if rerank else None

    @property
    def _settings(self) -> Evaluation:
        settings = self.model.parameters.eval if self.model.parameters else Evaluation()
        return replace(settings, rerank=self.rerank) if self.rerank else settings

    @cached_property
    def _encoded(self) -> SplitEncoded:
        return self._embedded(self.model.aligned, bool(self._second and self._second.is_own))

    def _embedded(self, model: AlignedModel, reranks: bool) -> SplitEncoded:
        store, split, size = self.data.opened, self.data.split, self.batch_size
        policy = parts_policy(model, reranks, self._settings, self.folder)
        levels = [given.level for given in model.interface.inputs.values()]
        batches = sum(-(-len(store.rows(split, level)) // size) for level in levels)
        title = escape(f"{self.model.name}: {self.data.title}, batches")
        with progress_bar() as progress:
            advance = partial(progress.advance, progress.add_task(title, total=batches, note=""))
            try:
                return embed_split(model, store, split, self.accelerator, size, self.workers, advance, policy)
            except torch.OutOfMemoryError:
                raise CusaError(
                    f"{self.model.name}: the device has no room for batches of {size:,}. Say a smaller --batch-size."
                ) from None

    @cached_property
    def _evaluated(self) -> Evaluated:
        encoded = self._encoded
        with self._ranking():
            store, split, reranked = self.data.opened, self.data.split, (lambda: self._reranked)
            how = self._settings, self.folder, reranked if self._second else None
            return evaluate(self.model.aligned, encoded, lambda: self._similarities, store, split, *how)

    def _figures(self, needed: str) -> dict[str, Any]:
        figures, faults = self._evaluated
        if needed in faults:
            raise DataSetError(f"{self.data.title}: {faults[needed]}")
        if needed in ELSEWHERE - figures.keys():
            names = " and ".join(crossed(self.model.aligned))
            raise DataSetError(f"{self.data.title}: {needed} is not for a model of {names}. Leave the task out.")
        return figures

    @property
    def _sizes(self) -> dict[str, int]:
        images, captions = self._similarities.shape
        return {"images": images, "captions": captions}

    def _ranking(self) -> Status:
        """Show that rankings, which are one piece of work, are being made."""
        return console.status(escape(f"{self.model.name}: ranking {self.data.title}"))


@dataclass(frozen=True)
class TeacherOnStore:
    """A teacher's figures on a split, within its modality."""

    model: TeacherModel
    data: DataSets
    threads: int

    def image_retrieval(self, result: Result) -> None:
        """Add the R@1 by the split's labels."""
        images = split_images(self.data.opened, self.data.split)
        rows = self.data.opened.rows(self.data.split, "sample")
        if (found := self._extracted(rows)) is None:
            measure_images(self.model, images, result, self.threads)
            return
        features, valid = found
        labels = images.labels[valid]
        result.figures[self.data.title] = recall_at_1(features[valid], labels)
        result.counts[self.data.title] = {
            "images": len(labels),
            "classes": len(np.unique(labels)),
            "broken": int((~valid).sum()),
        }

    def sts(self, result: Result) -> None:
        """Add the correlation with the split's graded caption pairs."""
        store, title = self.data.opened, self.data.title
        first, second, gold = graded_pairs(self.data)
        rows = store.rows(self.data.split, "caption")
        asked, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        if (found := self._extracted(rows[asked])) is None:
            texts = store.captions["text"].take(rows[asked]).to_pylist()
            found = embed_texts(self.model, texts, title), np.ones(len(texts), dtype=np.bool_)
        features, valid = found
        one, other = places.reshape(2, len(gold))
        kept = valid[one] & valid[other]
        result.figures[title] = correlate(features[one[kept]], features[other[kept]], gold[kept], title)
        result.counts[title] = {"pairs": int(kept.sum())}

    def _extracted(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return this very teacher's features of rows in the store, and which are valid; None if it has none."""
        store, slug = self.data.opened, teacher_slug(self.model.name, self.model.modality)
        extracted = store.manifest.teachers.get(slug)
        if extracted is None or extracted.fingerprint != self.model.fingerprint:
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


def split_images(store: Store, split: str) -> LabelledImages:
    """Return the images of a store's split, with the labels that the store carries.

    Raises:
        DataSetError: some have no label.
    """
    rows = store.rows(split, "sample")
    samples = store.samples.slice(rows[0], len(rows))
    labels = samples["label"]
    if labels.null_count:
        raise DataSetError(
            f"{store.root}: {labels.null_count:,} of the {len(rows):,} images of the split {split!r} have no label, "
            f"so it is not measured for image retrieval. Labels come from the source (data.columns.label)."
        )
    return LabelledImages(
        title=f"{store.root.name}, {split}",
        names=samples["key"].to_pylist(),
        labels=np.array([str(label) for label in labels.to_pylist()], np.str_),
        read=lambda place: store.images[int(rows[place])],
    )
