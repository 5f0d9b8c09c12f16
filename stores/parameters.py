"""Parameters: one frozen dataclass a section of params.yaml, each checking itself at birth.

`params.yaml` is the record of a run; flags override single values. The defaults here and the file at the top of the
checkout say the same (a test holds them together), so that a person's own file needs to name only what differs.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import pydantic
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stores.errors import ParameterError
from stores.layout import SAFE_NAME
from stores.modality import Level

_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["auto", "fp32", "bf16"]
BatchSize = PositiveInt | Literal["auto"]
Column = str | PositiveInt
SourceFormat = Literal[
    "auto", "karpathy", "coco", "csv", "tsv", "jsonl", "parquet", "folder", "webdataset", "huggingface"
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
    """The embedded data set: how many pictures, of what size, from which seed."""

    seed: NonNegativeInt = 0
    train: NonNegativeInt = 2000
    val: NonNegativeInt = 300
    test: NonNegativeInt = 500
    pixels: Annotated[int, Field(ge=16, le=1024)] = 64


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Columns:
    """Which columns of a table mean what: names, or numbers from 1 where no line names them; null: by usual names."""

    # two columns are the image's folder and its file name
    image: Column | Annotated[list[Column], Field(min_length=2, max_length=2)] | None = None
    caption: Column | None = None
    # tells samples apart; without one, the row's number does
    id: Column | None = None
    split: Column | None = None
    label: Column | None = None

    def numbers(self) -> list[tuple[str, int]]:
        """Return the roles whose columns are given by number, with these."""
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
class Data:
    """The data set to ingest."""

    # "scenes", or where the data set lies: a path, pattern or address that fsspec reads; or one a split: {train: …}
    source: str | dict[str, str] = "scenes"
    # auto: recognised by content
    format: SourceFormat = "auto"
    # folder of the images; without it, the folder of the captions file
    images: str | None = None
    columns: Columns = Field(default_factory=Columns)
    # between the columns of a CSV or TSV; null: seen by the content
    delimiter: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    # of text files, such as cp1252; null: UTF-8, or UTF-16 where the content shows it
    encoding: Encoding | None = None
    # what makes several records one sample: that they name one picture by its path (by its bytes where it has none);
    # that its bytes are equal, wherever it lies; none: nothing does
    merge: Literal["path", "bytes", "none"] = "path"
    # images with more pixels than this are quarantined
    max_pixels: Annotated[int, Field(gt=0, le=2**27)] = 50_000_000
    # the run stops when a larger share of the samples, or of the captions, is bad
    max_bad_fraction: Fraction = 0.05
    scenes: Scenes = Field(default_factory=Scenes)
    # features of yours to import, by name: {regions: {file: regions.npy}}
    features: dict[Annotated[str, Field(pattern=SAFE_NAME)], FeatureFile] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teachers:
    """The two frozen teachers, as family:name, and their weights where the name does not say."""

    image: str = "hog-color"
    image_weights: str | None = None
    text: str = "minilm"
    text_weights: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Extract:
    """How stage 1 runs. Another shard size or precision makes the features anew; batch sizes change only rounding."""

    shard_size: PositiveInt = 1000
    # auto: every GPU, or the CPU where there is none; several are named with commas, one process each
    device: str = "auto"
    # auto: bf16 where the hardware has it, else fp32
    precision: Precision = "auto"
    # auto: the largest that fits; where memory runs out all the same, a batch is halved
    image_batch: BatchSize = "auto"
    text_batch: BatchSize = "auto"
    # rows that are planned together, across shards: texts are batched by their lengths
    window: PositiveInt = 16_384
    # processes that decode images beside each model
    workers: NonNegativeInt = 2
    # local: this machine; ray: a Ray cluster
    engine: Literal["local", "ray"] = "local"
    # beyond exact_rows: by size, or this faiss.index_factory string; up to them every index is exact
    index: str = "auto"
    exact_rows: NonNegativeInt = 200_000
    # an approximate index finds this share of the true ten nearest, or the run says what to change
    min_recall: Fraction = 0.95


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Student:
    """The model to train."""

    # open-clip:<model>[/<pretrained tag or file>], or package.module:factory
    model: str = "open-clip:small-clip"
    # towers that stay as they are: image, text
    freeze: list[Literal["image", "text"]] = Field(default_factory=list)
    # activations are computed again in the backward pass: less memory, a third more time
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
class Loss:
    """The student's original loss + alpha · CSA + beta · USA (CUSA, arXiv 2403.05261, eq. 9)."""

    # infonce, hinge, or package.module:factory of a term of your own
    original: str = "infonce"
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.5
    # τ_P of the soft labels (eq. 5); the paper's is 1
    teacher_temperature: PositiveFloat = 0.1
    # soft labels keep each row's so many nearest columns of the batch; null: all of them (the paper)
    soft_top_k: PositiveInt | None = None
    # where the soft labels come from: each modality's own teacher, the mean of both, or their geometric mean
    mix: Literal["each", "add", "dot"] = "each"
    # mean: the paper's InfoNCE; reference: divided by the batch size once more, as the authors' code does
    reduction: Literal["mean", "reference"] = "mean"
    hinge: Hinge = Field(default_factory=Hinge)
    # further terms of your own: {package.module:factory: weight}
    extra: dict[str, NonNegativeFloat] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Train:
    """How stage 2 trains."""

    seed: NonNegativeInt = 0
    epochs: PositiveInt = 8
    # pairs of one step, over all processes; each pair is compared with all the others
    batch_size: Annotated[int, Field(ge=2)] = 128
    # pairs that go through the student at once in a process, where a batch does not fit (GradCache); null: all
    micro_batch: PositiveInt | None = None
    learning_rate: PositiveFloat = 3e-3
    # where the cosine schedule ends
    final_learning_rate: NonNegativeFloat = 1e-5
    # share of the steps over which the learning rate rises linearly
    warmup: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: PositiveFloat = 1.0
    # all: every pair once an epoch; one: a random caption of each image
    captions: Literal["all", "one"] = "all"
    # the student's own training transform; false: images are seen as in measuring
    augment: bool = False
    # other stores mixed into every batch: {path: share of the pairs}; an epoch is one pass over the main store
    mix_in: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default_factory=dict)
    # share of the training images whose captions are swapped with other images', to study wrong pairs
    noise: Fraction = 0.0
    # this many shards are read and shuffled together
    shuffle_shards: PositiveInt = 16
    device: str = "auto"
    precision: Precision = "auto"
    # torch.compile the student
    compile: bool = False
    # processes that decode images, beside each training process
    workers: NonNegativeInt = 0
    # teacher features up to this size lie on the device; larger ones are gathered on the host
    device_table_gib: NonNegativeFloat = 4.0
    # images of a student that does not augment are kept up to this size, in each loading process
    cache_gib: NonNegativeFloat = 0.5
    # first train the same student with InfoNCE alone, same seed and epochs, to show what the soft labels change
    compare: bool = True
    # steps between two checkpoints within an epoch; there is one after each epoch besides
    save_every: PositiveInt = 500
    # keep the weights of every so many epochs, beside the best and the last; 0: only those
    keep_every: NonNegativeInt = 0
    # write TensorBoard's event files too
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Evaluation:
    """What is measured, and on which splits."""

    # chooses the best checkpoint, after each epoch
    validation: str = "val"
    # measured once, with the best checkpoint
    test: str = "test"
    batch_size: PositiveInt = 256


SECTIONS: Final[dict[str, type[Any]]] = {
    "data": Data,
    "teachers": Teachers,
    "extract": Extract,
    "student": Student,
    "loss": Loss,
    "train": Train,
    "eval": Evaluation,
}


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


PARAMS_FILE: Final = Path("params.yaml")
P = TypeVar("P", ExtractParameters, TrainParameters)


def load_parameters(
    kind: type[P], path: Path | None = None, flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> P:
    """Load the sections of `kind` from the YAML file at `path`, then apply what the command line says.

    Args:
        kind: which sections.
        path: without it ./params.yaml is read, if there is one.
        flags: values by `section.key`; None leaves the file's.
        overrides: texts `section.key=value`, each value in YAML.

    Raises:
        ParameterError: the file cannot be read, or a key or value is not one; the message names the nearest key.
    """
    if path is None and PARAMS_FILE.exists():
        path = PARAMS_FILE
    values = _read(path) if path else {}
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, name.split("."), value)
    for override in overrides:
        _set(values, *_parse(override))
    return recorded_parameters(kind, values, str(path) if path else "parameters")


def recorded_parameters(kind: type[P], values: Mapping[str, Any], where: str) -> P:
    """Return the sections of `kind` among plain `values`, such as `as_dict` gives; `where` names their place.

    Raises:
        ParameterError: a key or value is not one; the message names the nearest key.
    """
    for section in values:
        if section not in SECTIONS:
            raise ParameterError(f"{where}: {section!r} is not a section.{_nearest(section, SECTIONS)}")
    try:
        read = {name: values[name] for name in _names(kind) if values.get(name) is not None}
        # By way of JSON, where strict checking knows that a mapping may become a dataclass.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(read, default=str))
    except pydantic.ValidationError as error:
        places = {tuple(_location(fault)): fault for fault in reversed(error.errors())}
        faults = [fault | {"msg": _expected(error.errors(), place)} for place, fault in reversed(places.items())]
        raise ParameterError("\n".join(_explain(where, kind, fault) for fault in faults)) from None


def as_dict(parameters: Any) -> dict[str, Any]:
    """Return parameters as plain values, for JSON."""
    values: dict[str, Any] = pydantic.TypeAdapter(type(parameters)).dump_python(parameters, mode="json")
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"The parameters file {path} cannot be read: {error}.") from None
    except YAMLError as error:
        raise ParameterError(f"{path} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(section, dict | None) for section in values.values()):
        raise ParameterError(f"{path} must map sections ({', '.join(SECTIONS)}) to their keys and values.")
    return values


def _parse(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2:
        raise ParameterError(f"-S {override!r} is not of the form section.key=value, such as loss.alpha=0.1.")
    try:
        return keys, _yaml().load(io.StringIO(text))
    except YAMLError:
        raise ParameterError(f"-S {override!r}: {text!r} is not a YAML value.") from None


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    place = values
    for key in keys[:-1]:
        inner = place.get(key)
        place[key] = dict(inner) if isinstance(inner, dict) else {}
        place = place[key]
    place[keys[-1]] = value


def _yaml() -> YAML:
    # As DVC parses it: YAML 1.2, in which 1e-4 is a number.
    return YAML(typ="safe", pure=True)


def _location(fault: Any) -> list[str]:
    """Return where a fault lies, without the names of the types that were tried there."""
    return [str(part) for part in fault["loc"] if not re.fullmatch(r"str|constrained-int|\w+\[.*\]", str(part))]


def _expected(faults: Sequence[Any], place: tuple[str, ...]) -> str:
    """Say what each of the types that a place may have expected."""
    said = [fault["msg"].removeprefix("Value error, ") for fault in faults if tuple(_location(fault)) == place]
    return ", or ".join(one[:1].lower() + one[1:] for one in said)


def _explain(where: str, kind: type[Any], fault: Any) -> str:
    location = _location(fault)
    name = ".".join(location)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = kind
        for part in location[:-1]:
            owner = get_type_hints(owner)[part]
        return f"{where}: {name} is not a parameter.{_nearest(location[-1], _names(owner))}"
    return f"{where}: {name} is {fault['input']!r}: {fault['msg']}."


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]
