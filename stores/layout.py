"""Where each file of a store lies, and which names are allowed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores.errors import StoreError

SAFE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What split, shard and teacher folder names must match: a name from a file never leads out of the store."""


def teacher_slug(spec: str, modality: str) -> str:
    """Return the folder name of the teacher `spec`: its `family:name` with unusual characters made dashes.

    Both towers of an open-clip model bear one spec, so there the folder says which: `-image` or `-text`.
    """
    if spec.startswith("open-clip:"):
        spec = f"{spec}-{modality}"
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", spec).strip("-.")
    if not slug:
        raise StoreError(f"The teacher spec {spec!r} has no letter or digit to name its folder by.")
    return slug


SHARD: Final = r"(?P<split>[A-Za-z0-9][A-Za-z0-9_.-]*)-\d{6,}"
"""What the names look like that `shard_name` gives."""


def shard_name(split: str, number: int) -> str:
    """Return the name of a split's shard, such as `train-000000`."""
    return f"{split}-{number:06d}"


@dataclass(frozen=True)
class Layout:
    """The paths within the store at `root`."""

    root: Path

    @property
    def mark(self) -> Path:
        """The file that says that the folder is a store, finished or not; only such a folder is written to."""
        return self.root / "store.txt"

    @property
    def lock(self) -> Path:
        """The file that the one writing run holds."""
        return self.root / "store.lock"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def former_manifest(self) -> Path:
        """The manifest of the last finished run, while another changes what it names."""
        return self.root / "manifest.former.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples.arrow"

    @property
    def captions(self) -> Path:
        return self.root / "captions.arrow"

    @property
    def classes(self) -> Path:
        return self.root / "classes.arrow"

    @property
    def relevance(self) -> Path:
        """Every (caption row, sample row) that truly belong together, where the source knows."""
        return self.root / "relevance.arrow"

    @property
    def pairing(self) -> Path:
        """The sample that each caption is paired with, where noise was added on purpose."""
        return self.root / "pairing.arrow"

    @property
    def caption_pairs(self) -> Path:
        """Graded pairs of captions (row, row, similarity), where the source knows."""
        return self.root / "caption_pairs.arrow"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    def shard(self, name: str) -> Path:
        return self.root / "shards" / f"{name}.tar"

    def shard_receipt(self, name: str) -> Path:
        """Return the place of what the shard was made from, its checksum and what was rejected; written after it."""
        return self.root / "shards" / f"{name}.json"

    def features(self, slug: str, shard: str) -> Path:
        return self.root / "features" / slug / f"{shard}.h5"

    def index(self, slug: str, split: str) -> Path:
        return self.root / "indices" / slug / f"{split}.faiss"

    def index_card(self, slug: str, split: str) -> Path:
        return self.root / "indices" / slug / f"{split}.json"
