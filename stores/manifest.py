"""The manifest: what is in a store. It is written last and is the commit mark: no manifest, no store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field, NonNegativeInt, StringConstraints
from pydantic.dataclasses import dataclass

from stores.atomic import write_text
from stores.errors import StoreError
from stores.layout import SAFE_NAME, Layout

FORMAT_VERSION: Final = 1
Name = Annotated[str, StringConstraints(pattern=SAFE_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Modality = Literal["image", "text"]


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

    def first_row(self, modality: Modality) -> int:
        return self.first_sample if modality == "image" else self.first_caption

    def rows(self, modality: Modality) -> int:
        return self.samples if modality == "image" else self.captions


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """One teacher's features; `parts` gives the checksum of each shard's feature part."""

    spec: str
    modality: Modality
    dim: Annotated[int, Field(gt=0)]
    precision: Literal["fp32", "bf16"]
    fingerprint: Sha256
    parts: dict[Name, Sha256]
    invalid: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a store; files are named by their SHA-256."""

    format_version: int
    source: dict[str, Any]
    source_fingerprint: Sha256
    files: dict[Name, Sha256]
    shards: tuple[Shard, ...]
    teachers: dict[Name, TeacherFeatures]
    indices: dict[Name, dict[Name, Sha256]]
    parameters: dict[str, Any]
    merged: dict[Name, NonNegativeInt] = Field(default_factory=dict)
    """How many records of each split joined the sample of an earlier one of the same picture."""
    shared: dict[Name, dict[Name, NonNegativeInt]] | None = None
    """How many samples of each split show a picture that came before: in an earlier split, or in their own."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order of their rows."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    def rows(self, split: str, modality: Modality) -> int:
        """Return how many rows of a modality a split has."""
        return sum(shard.rows(modality) for shard in self.shards if shard.split == split)


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
        manifest = _ADAPTER.validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
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
