"""Parameters of cusa-extract: the data set, the teachers, how it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from stores.layout import SAFE_NAME
from stores.modality import Level
from stores.parameters.kinds import STRICT, BatchSize, Column, Encoding, Fraction, Precision, Required, SourceFormat


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Scenes:
    """The embedded data set: number of images per split, their side in pixels, the seed."""

    seed: NonNegativeInt = 0
    train: NonNegativeInt = 2000
    val: NonNegativeInt = 300
    test: NonNegativeInt = 500
    pixels: Annotated[int, Field(ge=16, le=1024)] = 64
    # further modalities: attributes (of each sample), speech (of each caption), class_embedding (of each class)
    modalities: list[Literal["attributes", "speech", "class_embedding"]] = Field(default_factory=list)
    # share of the training rows that lack attributes, and of those that lack speech
    missing: Fraction = 0.0
    # classes that the test split alone has, of 64
    unseen: Annotated[int, Field(ge=0, le=48)] = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Columns:
    """What each column of a table holds: by name, or by number from 1 if there is no header; null: by usual names."""

    # two columns: the image's folder and its file name
    image: Column | Annotated[list[Column], Field(min_length=2, max_length=2)] | None = None
    caption: Column | None = None
    # identifies the sample; without one, the row number does
    id: Column | None = None
    split: Column | None = None
    label: Column | None = None

    def numbers(self) -> list[tuple[str, int]]:
        """Return (role, number) for each column that is given by number."""
        given = [(role, getattr(self, role)) for role in ("image", "caption", "id", "split", "label")]
        listed = [(role, one) for role, value in given for one in (value if isinstance(value, list) else [value])]
        return [(role, value) for role, value in listed if isinstance(value, int)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeatureFile:
    """A file of features of yours, to be imported: a row per sample, caption or class."""

    # .npy, .npz, .parquet or .h5; or one per split: {train: …}
    file: str | dict[str, str]
    level: Level = "sample"
    # which array, column or dataset of the file; null: the only one
    array: str | None = None
    # the array, column or dataset that names each row's sample (its id in the source) or class; null: rows are in the
    # order of the source
    key: str | None = None
    # vectors are brought to length one, and can be searched by cosine
    unit: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Noise:
    """Wrong pairs made on purpose in the split "train", to study them; the store keeps the true pairs beside them."""

    # share of the images, or of the captions, that are permuted among themselves
    ratio: Fraction = 0.0
    # image: all captions of an image move together; caption: each by itself
    level: Literal["image", "caption"] = "image"
    seed: NonNegativeInt = 0
    # .npy with the number of an image for each image or caption, as released by others; in place of the ratio
    file: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """The data set to ingest."""

    # "scenes", or a path, glob or URL that fsspec reads; or one per split: {train: …}
    source: str | dict[str, str] = "scenes"
    # auto: detected from the content
    format: SourceFormat = "auto"
    # folder of the images; null: the folder of the captions file
    images: str | None = None
    columns: Columns = Field(default_factory=Columns)
    # column separator of a CSV or TSV; null: detected
    delimiter: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    # of text files, such as cp1252; null: UTF-8, or UTF-16 where the content shows it
    encoding: Encoding | None = None
    # which records become one sample: those whose image has the same path (the same bytes where it has no path);
    # those whose image has the same bytes, whatever its path; none: every record is its own sample
    merge: Literal["path", "bytes", "none"] = "path"
    # what a sample must have; without image, or without text, those are taken too that lack one (but not a broken one)
    require: list[Required] = Field(default_factory=lambda: list[Required](("image", "text")))
    # images with more pixels than this are quarantined
    max_pixels: Annotated[int, Field(gt=0, le=2**27)] = 50_000_000
    # the run stops when a larger share of the samples, or of the captions, is quarantined
    max_bad_fraction: Fraction = 0.05
    # of a store (format: store), its clean column: pairs below the bound are left out
    clean: str | None = None
    clean_at_least: Fraction = 0.5
    scenes: Scenes = Field(default_factory=Scenes)
    noise: Noise = Field(default_factory=Noise)
    # what encodes spoken captions: speech:<folder of transformers>, or package.module:factory; null: nothing does
    speech: str | None = None
    # features of yours to import, by name: {regions: {file: regions.npy}}
    features: dict[Annotated[str, Field(pattern=SAFE_NAME, max_length=255)], FeatureFile] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Teachers:
    """The two frozen teachers, as family:name, and their weights where the name does not say."""

    image: str = "hog-color"
    image_weights: str | None = None
    text: str = "minilm"
    text_weights: str | None = None
    # a further teacher, stored beside the two: both towers of run:<folder of a trained run> or
    # open-clip:<model>/<pretrained>, or any other, such as grid:<timm model>@6x6
    further: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Extract:
    """How stage 1 runs. Changing shard size or precision recomputes features; batch sizes change only rounding."""

    shard_size: PositiveInt = 1000
    # auto: every GPU, else the CPU; several are separated by commas, one process each
    device: str = "auto"
    # auto: as the store's features are; of a new store bf16 where the hardware has it, else fp32
    precision: Precision = "auto"
    # auto: the largest that fits; a batch that still runs out of memory is halved
    image_batch: BatchSize = "auto"
    text_batch: BatchSize = "auto"
    # rows that are batched together, across shards: texts of similar length share a batch
    window: PositiveInt = 16_384
    # processes per model that decode images; null: beside a GPU its share of the cores, else 2; on a processor plain
    # JPEGs are decoded by threads between batches instead
    workers: NonNegativeInt | None = None
    # local: this machine; ray: a Ray cluster
    engine: Literal["local", "ray"] = "local"
    # up to exact_rows every index is exact; beyond, auto chooses by size, or a faiss.index_factory string
    index: str = "auto"
    exact_rows: NonNegativeInt = 200_000
    # recall@10 that an approximate index must reach, or the run stops and says what to change
    min_recall: Fraction = 0.95
