"""What a person names to be measured on: a store's split, and folders and files of published data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import click

from stores import Store, StoreError
from train.evaluation.evaluate import caption_pairs, true_relevance
from train.evaluation.image_folders import BENCHMARKS
from train.evaluation.paper import COCO, FLICKR
from train.evaluation.result import DataSetError

COCO_TEST, FLICKR_TEST, FOLDS = 5000, 1000, 5
"""Images of Karpathy's test splits; COCO 1K is COCO 5K in so many folds."""
OWN: Final = {("dataset_coco.json", COCO_TEST): COCO, ("dataset_flickr30k.json", FLICKR_TEST): FLICKR}
"""By the captions file and the number of images: test splits of the paper."""


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """Where the data of the tasks lie; what is None was not named."""

    store: Path
    split: str
    images: Mapping[str, Path]
    """By benchmark (of `BENCHMARKS`), its folder."""
    sts: Path | None
    coco_annotations: Path | None

    @cached_property
    def opened(self) -> Store:
        """The store, which has the split.

        Raises:
            StoreError: there is no such store or split.
        """
        store = Store.open(self.store)
        store.shards(self.split)
        return store

    @property
    def found(self) -> Store | None:
        """The store, if there is one that has the split."""
        try:
            return self.opened
        except StoreError:
            return None

    @property
    def title(self) -> str:
        """What the split is called in results: as the paper does, where it is the paper's."""
        own = _captions_file(self.opened, self.split)
        count = len(self.opened.rows(self.split, "sample"))
        published = OWN.get((own.name.removesuffix(".gz"), count)) if own and self.split == "test" else None
        return published or f"{self.store.name}, {self.split}"

    @property
    def has_labels(self) -> bool:
        """Whether images of the split have labels."""
        rows = self.opened.rows(self.split, "sample")
        return bool(self.opened.samples["label"].slice(rows[0], len(rows)).null_count < len(rows))

    @property
    def has_pairs(self) -> bool:
        """Whether captions of the split are paired and graded."""
        return caption_pairs(self.opened, self.split) is not None

    @property
    def has_truth(self) -> bool:
        """Whether it is known of the split what is true beside its own pairs: from COCO's ids, or by its relevance."""
        return self.title == COCO or true_relevance(self.opened, self.split) is not None

    @property
    def annotations(self) -> Path:
        """The file with COCO's caption ids: the one named, or else the one that the store was made from.

        Raises:
            DataSetError: there is none.
        """
        own = _captions_file(self.opened, self.split)
        if self.coco_annotations:
            return self.coco_annotations
        if own is None or not own.is_file():
            raise DataSetError(
                f"eccv: ECCV Caption and CxC need the ids of COCO's captions, and {self.store} was "
                f"{f'made from {own}, which is not there now' if own else 'not made from COCO'}. Expected a "
                f"store made from dataset_coco.json and --coco-annotations dataset_coco.json (Karpathy's, "
                f"https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip)."
            )
        return own


def parse_images(places: Iterable[str]) -> dict[str, Path]:
    """Return where each benchmark lies: `FOLDER` holds all four, `NAME=FOLDER` is one.

    Raises:
        click.BadParameter: a name is not a benchmark's.
    """
    folders: dict[str, Path] = {}
    for place in places:
        name, equals, folder = place.partition("=")
        if equals and not folder:
            raise click.BadParameter(f"{place!r} names no folder.", param_hint="--images")
        if not equals or Path(place).is_dir():
            folders |= dict.fromkeys(BENCHMARKS, Path(place)) | folders
        elif name in BENCHMARKS:
            folders[name] = Path(folder)
        else:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(BENCHMARKS)}.", param_hint="--images")
    return {name: folders[name] for name in BENCHMARKS if name in folders}


def _captions_file(store: Store, split: str) -> Path | None:
    """Return the captions file of COCO's or Karpathy's format that the split was made from; None if from another."""
    if store.manifest.source.get("format") not in ("karpathy", "coco"):
        return None
    data: Any = store.manifest.parameters.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    place = source.get(split) if isinstance(source, dict) else source
    return Path(place) if isinstance(place, str) else None
