"""Where each file of a store lies, and which names are allowed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from stores.errors import StoreError

SAFE_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What split, shard and teacher folder names must match: a name from a file never leads out of the store."""


CROSS_MODAL: Final = ("open-clip:", "run:")
"""The families whose teachers have two towers, of images and of texts, in one space."""


def teacher_slug(spec: str, modality: str) -> str:
    """Return the folder name of the teacher `spec`: its `family:name` with unusual characters made dashes.

    Both towers of an open-clip model or a run bear one spec, so there the folder says which: `-image` or `-text`.
    """
    if spec.startswith(CROSS_MODAL):
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


class Layout:
    """The paths within the store at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = root / "store.txt"
        """Says that the folder is a store, finished or not; only such a folder is written to."""
        self.lock = root / "store.lock"
        """The file that the one writing run holds."""
        self.manifest = root / "manifest.json"
        self.former_manifest = root / "manifest.former.json"
        """The manifest of the last finished run, while another changes what it names."""
        self.samples = root / "samples.arrow"
        self.captions = root / "captions.arrow"
        self.classes = root / "classes.arrow"
        self.relevance = root / "relevance.arrow"
        """Every (caption row, sample row) that truly belong together, where the source knows."""
        self.pairing = root / "pairing.arrow"
        """The sample that each caption is paired with, where noise was added on purpose."""
        self.caption_pairs = root / "caption_pairs.arrow"
        """Graded pairs of captions (row, row, similarity), where the source knows."""
        self.quarantine = root / "quarantine.jsonl"

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
