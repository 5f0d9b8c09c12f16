"""The manifest: what is in a store. It is written last and is the commit mark: no manifest, no store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field, NonNegativeInt, StringConstraints
from pydantic.dataclasses import dataclass

from stores.atomic import write_text
from stores.errors import StoreError
from stores.json_objects import parsed_object
from stores.layout import SAFE_NAME, Layout
from stores.modality import LEVELS, Level

FORMAT_VERSION: Final = 2
Name = Annotated[str, StringConstraints(pattern=SAFE_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: `samples` rows from `first_sample`, `captions` rows from `first_caption`."""

    name: Name
    split: Name
    samples: NonNegativeInt
    captions: NonNegativeInt
    first_sample: NonNegativeInt
    first_caption: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Sha256

    def first_row(self, level: Level) -> int:
        return self.first_sample if level == "sample" else self.first_caption

    def rows(self, level: Level) -> int:
        return self.samples if level == "sample" else self.captions


@dataclass(frozen=True, kw_only=True)
class ClassShard(Shard):
    """The rows of classes.arrow, as one shard: features of classes have one part."""

    classes: NonNegativeInt

    def first_row(self, level: Level) -> int:
        return 0

    def rows(self, level: Level) -> int:
        return self.classes


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of one name, a teacher's or a user's own; `parts` gives the checksum of each shard's feature part."""

    spec: str
    """The teacher, or the files that they were imported from."""
    modality: str
    level: Level
    shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    """Of one row."""
    unit: bool
    """Whether rows are vectors of length one."""
    precision: Literal["fp32", "bf16"] | None
    """The teacher's; None of imported features."""
    fingerprint: Sha256
    parts: dict[Name, Sha256]
    invalid: NonNegativeInt
    """Rows that are absent: the teacher failed on them, or the user has none."""

    @property
    def dim(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape)

    @property
    def indexed(self) -> bool:
        """Whether rows can be searched by cosine; classes are few, and need no index."""
        return self.unit and len(self.shape) == 1 and self.level != "class"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a store; files are named by their SHA-256."""

    format_version: int
    source: dict[str, Any]
    source_fingerprint: Sha256
    files: dict[Name, Sha256]
    shards: tuple[Shard, ...]
    features: dict[Name, FeatureSet]
    indices: dict[Name, dict[Name, Sha256]]
    parameters: dict[str, Any]
    merged: dict[Name, NonNegativeInt] = Field(default_factory=dict)
    """How many records of each split joined the sample of an earlier one of the same picture."""
    shared: dict[Name, dict[Name, NonNegativeInt]] | None = None
    """How many samples of each split show a picture that came before: in an earlier split, or in their own."""

    classes: NonNegativeInt = 0
    """How many classes the samples' labels name: the rows of classes.arrow."""

    @property
    def teachers(self) -> dict[str, FeatureSet]:
        """The features that teachers made."""
        return {name: entry for name, entry in self.features.items() if entry.precision is not None}

    def shards_of(self, level: Level) -> tuple[Shard, ...]:
        """Return the shards that the parts of a level's features belong to."""
        if level != "class":
            return self.shards
        return class_shards(self.classes, self.files)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order of their rows."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    def shard_of(self, level: Level, row: int) -> Shard:
        """Return the shard that holds the global `row` of a level, which the store must have."""
        return next(s for s in self.shards if s.first_row(level) <= row < s.first_row(level) + s.rows(level))

    def rows(self, split: str, level: Level) -> int:
        """Return how many rows of a level a split has."""
        return sum(shard.rows(level) for shard in self.shards if shard.split == split)


def class_shards(classes: int, files: dict[str, str]) -> tuple[Shard, ...]:
    """Return the one shard that classes make; none where there are no classes."""
    if not classes:
        return ()
    nothing = dict.fromkeys(("samples", "captions", "first_sample", "first_caption", "bytes"), 0)
    return (ClassShard(name="classes", split="classes", sha256=files["classes.arrow"], classes=classes, **nothing),)


_ADAPTER: Final = pydantic.TypeAdapter(Manifest)


class DamagedManifest(StoreError):
    """The manifest is none that any version could have written."""


def write_manifest(manifest: Manifest, layout: Layout) -> None:
    """Write the manifest, atomically; do it when everything that it names is in place."""
    write_text(layout.manifest, _ADAPTER.dump_json(manifest, indent=2).decode() + "\n")
    layout.former_manifest.unlink(missing_ok=True)


def withdraw_manifest(layout: Layout) -> None:
    """Take the manifest away before what it names changes; the run that goes on still finds it as the former one."""
    if layout.manifest.exists():
        layout.manifest.replace(layout.former_manifest)


def read_manifest(layout: Layout) -> Manifest:
    """Read and check the manifest of the store at `layout.root`.

    Raises:
        StoreError: there is no manifest, or it is of another format, or damaged.
    """
    if not layout.manifest.exists():
        raise StoreError(
            f"{layout.root} is not a finished store: it has no manifest.json. Run cusa-extract --store {layout.root}."
        )
    return _read(layout.manifest)


def read_former_manifest(layout: Layout) -> Manifest | None:
    """Read the manifest, or the one that a run withdrew before it was stopped; None where there is neither.

    Raises:
        StoreError: it is of another format, or damaged.
    """
    return next((_read(path) for path in (layout.manifest, layout.former_manifest) if path.exists()), None)


def _read(path: Path) -> Manifest:
    try:
        manifest = _ADAPTER.validate_python(_upgraded(parsed_object(path.read_bytes())))
        needed = {"samples.arrow", "captions.arrow", *["classes.arrow"] * bool(manifest.classes)}
        if missing := sorted(needed - manifest.files.keys()):
            raise ValueError(f"no checksum of {missing[0]}")
    except (pydantic.ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedManifest(
            f"{path} cannot be read as a manifest ({str(error).splitlines()[0]}). "
            f"Run cusa-extract again: it makes it anew, and what is whole in the store is kept."
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
    if manifest.format_version != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {manifest.format_version}, this cusa reads {FORMAT_VERSION}. "
            f"Make the store again with cusa-extract, in a new folder."
        )
    return manifest


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's values as format 2 has them. Format 1 knew teachers' vectors alone; parts are the same."""
    if values.get("format_version") != 1:
        return values
    features = {}
    for name, entry in values.get("teachers", {}).items():
        rest = {key: value for key, value in entry.items() if key != "dim"}
        features[name] = {**rest, "level": LEVELS[entry["modality"]], "shape": [entry["dim"]], "unit": True}
    kept = {key: value for key, value in values.items() if key != "teachers"}
    return {**kept, "format_version": FORMAT_VERSION, "features": features}
