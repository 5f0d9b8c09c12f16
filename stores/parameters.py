"""Parameters: one frozen dataclass per section of params.yaml, validated on construction.

`params.yaml` is the record of a run; flags override single values. The defaults here equal those of the checkout's
params.yaml (a test compares them), so a user's own file names only what differs.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_type_hints

import pydantic
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from stores.layout import SAFE_NAME
from stores.modality import Level

_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["auto", "fp32", "bf16"]
BatchSize = PositiveInt | Literal["auto"]
Column = str | PositiveInt
Required = Literal["image", "text"]
SourceFormat = Literal[
    "auto",
    "karpathy",
    "coco",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
    "folder",
    "webdataset",
    "huggingface",
    "cub",
    "facc",
    "precomp",
    "store",
]


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("expected a text encoding that Python knows, such as utf-8, utf-16, cp1252, latin-1") from None
    return name


Encoding = Annotated[str, pydantic.AfterValidator(_known_encoding)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Noise:
    """Wrong pairs made on purpose in the split "train", to study them; the store keeps the true pairs beside them."""

    # share of the images, or of the captions, that are permuted among themselves
    ratio: Fraction = 0.0
    # image: all captions of an image move together; caption: each by itself
    level: Literal["image", "caption"] = "image"
    seed: NonNegativeInt = 0
    # .npy with the number of an image for each image or caption, as released by others; in place of the ratio
    file: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    features: dict[Annotated[str, Field(pattern=SAFE_NAME)], FeatureFile] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teachers:
    """The two frozen teachers, as family:name, and their weights where the name does not say."""

    image: str = "hog-color"
    image_weights: str | None = None
    text: str = "minilm"
    text_weights: str | None = None
    # a further teacher, stored beside the two: both towers of run:<folder of a trained run> or
    # open-clip:<model>/<pretrained>, or any other, such as grid:<timm model>@6x6
    further: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Extract:
    """How stage 1 runs. Changing shard size or precision recomputes features; batch sizes change only rounding."""

    shard_size: PositiveInt = 1000
    # auto: every GPU, else the CPU; several are separated by commas, one process each
    device: str = "auto"
    # auto: bf16 where the hardware has it, else fp32
    precision: Precision = "auto"
    # auto: the largest that fits; a batch that still runs out of memory is halved
    image_batch: BatchSize = "auto"
    text_batch: BatchSize = "auto"
    # rows that are batched together, across shards: texts of similar length share a batch
    window: PositiveInt = 16_384
    # processes per model that decode images; on a processor plain JPEGs are decoded by threads between batches instead
    workers: NonNegativeInt = 2
    # local: this machine; ray: a Ray cluster
    engine: Literal["local", "ray"] = "local"
    # up to exact_rows every index is exact; beyond, auto chooses by size, or a faiss.index_factory string
    index: str = "auto"
    exact_rows: NonNegativeInt = 200_000
    # recall@10 that an approximate index must reach, or the run stops and says what to change
    min_recall: Fraction = 0.95


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Head:
    """A modality of the student `heads`."""

    # features that the store holds under this name; or else
    features: str | None = None
    # a student (named as `student.model` is) whose tower of this modality is trained along
    tower: str | None = None
    # a hidden layer: Linear, GELU, Linear
    hidden: bool = False
    # rows and width of the features; null: as the store has them
    level: Level | None = None
    width: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Sgraf:
    """SGR and SAF (arXiv 2101.01368), where `student.model` is sgraf:…; a file has sizes of its own."""

    # of the store, the vectors of each image's regions
    regions: str = "regions"
    # how many regions, and numbers of each; null: as the store has them
    shape: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    # JSON of the words' numbers; null: the one that lies beside the student's file
    vocabulary: str | None = None
    # its SHA-256; null: whichever the file has
    vocabulary_sha256: str | None = None
    # numbers of an embedding, of a word's, of a similarity vector
    dim: PositiveInt = 1024
    word: PositiveInt = 300
    similarity: PositiveInt = 256


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Sets:
    """How the student `maxmatch:…` makes and compares sets of vectors (MaxMatch, arXiv 2506.21538)."""

    # K, the vectors of an item
    members: PositiveInt = 4
    # of slot attention, with weights in common
    rounds: PositiveInt = 2
    # of 64 numbers each
    heads: PositiveInt = 4
    # what a matched cosine c counts: exp(c) − 1, or c
    activation: Literal["expm1", "none"] = "expm1"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Student:
    """The model to train."""

    # open-clip:<model>[/<pretrained tag or file>], towers:…, maxmatch:…, sgraf:<SGR or SAF>[/<file>],
    # package.module:factory, or heads
    model: str = "open-clip:small-clip"
    # of the student `heads`, by modality, those of samples first: {image: {features: hog-color}, …}
    heads: dict[Annotated[str, Field(pattern=SAFE_NAME)], Head] = Field(default_factory=dict)
    # of the student `heads`: numbers of an embedding
    dim: PositiveInt = 512
    sgraf: Sgraf = Field(default_factory=Sgraf)
    # of the students `maxmatch:…`
    sets: Sets = Field(default_factory=Sets)
    # a trained run (its best checkpoint) or a checkpoint, whose weights it begins with
    weights: str | None = None
    # towers that are not trained, by modality: image, text
    freeze: list[str] = Field(default_factory=list)
    # recompute activations in the backward pass: less memory, a third more time
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Hinge:
    """The triplet loss with margin, where `loss.original` is hinge."""

    margin: PositiveFloat = 0.2
    # hardest: the negative nearest to each item alone counts; all: every one that violates the margin
    negatives: Literal["hardest", "all"] = "hardest"
    # epochs in which all violations count, before the hardest: it keeps a student from a random start off a plateau
    warm_up: NonNegativeInt = 0
    # sum over the batch, as the authors do, or mean
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Rematching:
    """How wrong pairs are found and matched anew, where `loss.recipe` is l2rm (L2RM, arXiv 2403.05105)."""

    # epochs in which all pairs are learned by a symmetric cross-entropy, which bears wrong ones
    warm_up: NonNegativeInt = 3
    # the two components of the pairs' losses
    mixture: Literal["beta", "gaussian"] = "beta"
    # ρ, the mass that is transported
    mass: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    # λ, the weight of the transport's entropy
    reg: PositiveFloat = 0.07
    # fixed: 1 − score; learned: a monotone map of the score, from the clean pairs
    cost: Literal["fixed", "learned"] = "fixed"
    # τ of the symmetric losses
    tau: PositiveFloat = 0.05
    # of the pairs that are matched anew
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Matching:
    """Image-text matching beside the contrastive loss, where `loss.recipe` is x2vlm (X2-VLM, arXiv 2211.12402)."""

    # of the contrastive loss
    contrast: PositiveFloat = 1.0
    # of matching
    weight: PositiveFloat = 1.0
    # how much of the teachers' cosine a drawn negative's target of match is; 0: none
    soft_negatives: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Coordination:
    """Every modality against every other, where `loss.original` is pcmc or pcmr (arXiv 2401.16347)."""

    # of PCMC: one for all pairs of modalities, or each its own
    temperatures: Literal["one", "each"] = "one"
    # of PCMR: γ, the weight of what matches; the rest is that of what does not
    gamma: Fraction = 0.5
    # of PCMR, what does not match: zero: should have a cosine of 0; below: of 0 or less
    far: Literal["zero", "below"] = "zero"
    # of pairs of modalities, such as {image/text: 2.0}; the others weigh 1
    weights: dict[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")], NonNegativeFloat] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SetTerms:
    """Terms that `loss.recipe` maxmatch adds (arXiv 2506.21538); the weight of each, of which 0 leaves it out."""

    # of the hinge, a mean, with the other settings of `loss.hinge`
    hinge: NonNegativeFloat = 1.0
    # λ_GD: members away from the vector that their set shares
    discriminative: NonNegativeFloat = 0.1
    # λ_ISD: members of a set apart
    divergence: NonNegativeFloat = 0.1
    # λ_MMD: all members of images, and of texts, as one cloud
    mmd: NonNegativeFloat = 0.01
    # λ_Div: apart in what they add to the shared vector
    diversity: NonNegativeFloat = 0.0
    # s and δ of the first two: e^(s (cosine − δ))
    scale: PositiveFloat = 1.0
    margin: float = 0.5
    # of the divergence: exp, which never ends, or hinge, which ends at the margin; of final members or what they add
    form: Literal["exp", "hinge"] = "exp"
    of: Literal["final", "residual"] = "final"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Loss:
    """The student's original loss + alpha · CSA + beta · USA (CUSA, arXiv 2403.05261, eq. 9)."""

    # cusa: these alone; l2rm: wrong pairs are found, and matched anew; maxmatch: terms of sets besides; x2vlm:
    # image-text matching besides
    recipe: Literal["cusa", "l2rm", "maxmatch", "x2vlm"] = "cusa"

    # infonce, hinge, pcmc, pcmr, or package.module:factory of a term of your own
    original: str = "infonce"
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.5
    # τ_P of the soft labels (eq. 5); the paper's is 1
    teacher_temperature: PositiveFloat = 0.1
    # soft labels keep the k nearest columns of each row; null: all of the batch (the paper)
    soft_top_k: PositiveInt | None = None
    # similarities behind the soft labels: each modality's own teacher's, the mean of both, their geometric mean
    mix: Literal["each", "add", "dot"] = "each"
    # mean: the paper's InfoNCE; reference: divided by the batch size once more, as the authors' code does
    reduction: Literal["mean", "reference"] = "mean"
    hinge: Hinge = Field(default_factory=Hinge)
    rematching: Rematching = Field(default_factory=Rematching)
    coordination: Coordination = Field(default_factory=Coordination)
    sets: SetTerms = Field(default_factory=SetTerms)
    matching: Matching = Field(default_factory=Matching)
    # where items of two modalities match: those of one caption (of modalities that both have one), of one sample, or
    # of one class. With a class's own modality it is always the class
    match: Level = "caption"
    # further terms of your own: {package.module:factory: weight}
    extra: dict[str, NonNegativeFloat] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Train:
    """How stage 2 trains."""

    seed: NonNegativeInt = 0
    epochs: PositiveInt = 8
    # pairs per step, over all processes; each pair is compared with all the others
    batch_size: Annotated[int, Field(ge=2)] = 128
    # pairs per forward pass in each process, where a batch does not fit (GradCache); null: all
    micro_batch: PositiveInt | None = None
    learning_rate: PositiveFloat = 3e-3
    # end of the cosine schedule
    final_learning_rate: NonNegativeFloat = 1e-5
    # share of the steps with linear warm-up
    warmup: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: PositiveFloat = 1.0
    # all: every pair once per epoch; one: a random caption of each image
    captions: Literal["all", "one"] = "all"
    # use the student's training transform; false: its evaluation transform
    augment: bool = False
    # other stores mixed into every batch: {path: share of the pairs}; an epoch is one pass over the main store
    mix_in: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default_factory=dict)
    # clean column of the store's pairs, made by cusa-store suspects or a training: what l2rm splits by, in place of its
    # own survey
    clean: str | None = None
    # pairs whose clean probability is less are left out
    clean_at_least: Fraction = 0.0
    # each pair weighs as much as it is likely to be right by `clean`, in InfoNCE, the hinge, CSA and PCMC; no other
    # term weighs pairs
    clean_weight: bool = False
    # shards that are read and shuffled together
    shuffle_shards: PositiveInt = 16
    device: str = "auto"
    precision: Precision = "auto"
    # torch.compile the student
    compile: bool = False
    # processes per training process that decode images
    workers: NonNegativeInt = 0
    # teacher features up to this size are kept on the device; larger ones are gathered on the host
    device_table_gib: NonNegativeFloat = 4.0
    # decoded images kept in each loading process, up to this size; not with augmentation
    cache_gib: NonNegativeFloat = 0.5
    # first train the same student with InfoNCE alone, same seed and epochs, to show what the soft labels change
    compare: bool = True
    # steps between checkpoints within an epoch; each epoch ends with one as well
    save_every: PositiveInt = 500
    # also keep the weights of every n-th epoch; 0: only the best and the last
    keep_every: NonNegativeInt = 0
    # also write TensorBoard event files
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Rerank:
    """A second stage: the first stage's nearest are ranked anew by a student that looks at an image and a text at once.

    What it does not look at ranks behind, as the first stage has it.
    """

    # whose `match` it is: self, a run's folder, a checkpoint, x2vlm:<file>, blip:<name or folder> or another student.
    # Of self, the validation's RSUM, by which the best checkpoint is chosen, is reranked as well
    student: str = "self"
    # how many of the nearest, each way
    k: PositiveInt = 128
    # the score: replace: the logit of match (X2-VLM, ALBEF); add: the first stage's added to it (BLIP)
    combine: Literal["replace", "add"] = "replace"
    # pairs of one image at once: what the device's memory has to hold
    batch_size: PositiveInt = 256


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Evaluation:
    """What is measured, and on which splits."""

    # measured after each epoch; selects the best checkpoint
    validation: str = "val"
    # measured once, with the best checkpoint
    test: str = "test"
    batch_size: PositiveInt = 256
    # a second stage after the first; null: none
    rerank: Rerank | None = None
    # items' tokens or regions of a modality that are more than this lie on disk, in float16, while they are compared
    parts_gib: NonNegativeFloat = 4.0
    # of a student of more than two modalities, what is a hit: the same caption (of two modalities that both have one
    # for each), the same sample, or the same class
    hits: Level = "caption"
    # modalities combined as one query or item, such as [image+text]: each against every one that is not in it
    enriched: list[str] = Field(default_factory=list)
    # unit: the sum of the parts' vectors, at length one; sum: as it is, so that similarities are sums of the parts'
    enrichment: Literal["unit", "sum"] = "unit"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ExtractParameters:
    """The sections that cusa-extract reads."""

    data: Data = Field(default_factory=Data)
    teachers: Teachers = Field(default_factory=Teachers)
    extract: Extract = Field(default_factory=Extract)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainParameters:
    """The sections that cusa-train reads."""

    teachers: Teachers = Field(default_factory=Teachers)
    student: Student = Field(default_factory=Student)
    loss: Loss = Field(default_factory=Loss)
    train: Train = Field(default_factory=Train)
    eval: Evaluation = Field(default_factory=Evaluation)


SECTIONS: Final[dict[str, type[Any]]] = get_type_hints(ExtractParameters) | get_type_hints(TrainParameters)


def as_dict(parameters: Any) -> dict[str, Any]:
    """Return parameters as plain values, for JSON."""
    values: dict[str, Any] = pydantic.TypeAdapter(type(parameters)).dump_python(parameters, mode="json")
    return values
