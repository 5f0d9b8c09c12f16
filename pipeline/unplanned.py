"""What lies in a store and is not, or no longer, of its plan: what we made goes, what a person put there stays.

Ours is what the store's records prove: a shard by its receipt, a part by the checksum at its end, an index and a table
by the manifest. A name alone proves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from pipeline.receipts import read_receipt
from stores import Manifest, StoreError
from stores.digests import file_digest
from stores.features import is_part
from stores.layout import SHARD, Layout
from stores.ownership import Kinds, is_plain

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_SHARD: Final = SHARD.replace("?P<split>", "")
STORE_KINDS: Final[Kinds] = {
    r"(store\.txt|(manifest|manifest\.former)\.json|quarantine\.jsonl|first-seen|merge)": is_plain,
    r"(samples|captions|classes|pairing|relevance|caption_pairs)\.arrow": is_plain,
    rf"shards/{_SHARD}\.(tar|json)": is_plain,
    rf"features/{_NAME}/({_SHARD}|classes)\.h5": is_plain,
    rf"indices/{_NAME}/{_NAME}\.(faiss|json)": is_plain,
}
"""The files of a store, by name."""


def unplanned_shards(names: Collection[str], before: Manifest | None, layout: Layout) -> list[Path]:
    """Return the tars and receipts of ours that are of no shard in `names`."""
    planned = {match["split"] for name in names if (match := re.fullmatch(SHARD, name))}
    splits = planned | set(before.splits if before else ())
    found = []
    for path in sorted((layout.root / "shards").glob("*")):
        match = re.fullmatch(SHARD, path.stem)
        if path.stem in names or not match or match["split"] not in splits:
            continue
        if path.suffix == ".tar" and is_our_shard(path.stem, before, layout):
            found.append(path)
        if path.suffix == ".json" and is_plain(path) and _receipt_digest(path.stem, layout):
            found.append(path)
    return found


def is_our_shard(name: str, before: Manifest | None, layout: Layout) -> bool:
    """Tell whether the tar of a shard's name is the one that its receipt, or else the manifest, tells of."""
    tar = layout.shard(name)
    recorded = {shard.name: shard.sha256 for shard in before.shards} if before else {}
    return is_plain(tar) and file_digest(tar) in (_receipt_digest(name, layout), recorded.get(name))


def check_replaced_shard(name: str, before: Manifest | None, layout: Layout) -> None:
    """See that a shard which is to be made takes no person's place: with a receipt, its tar was ours, if damaged now.

    Raises:
        StoreError: a tar lies there that no record knows.
    """
    tar = layout.shard(name)
    known = _receipt_digest(name, layout) or is_our_shard(name, before, layout)
    if os.path.lexists(tar) and not known:
        raise _foreign([tar])


def unplanned_parts(slug: str, names: Collection[str], layout: Layout) -> list[Path]:
    """Return the feature parts of ours, of a teacher, that are of no shard in `names`."""
    folder = layout.features(slug, "").parent
    unplanned = (path for path in sorted(folder.glob("*.h5")) if path.stem not in names)
    return [path for path in unplanned if re.fullmatch(SHARD, path.stem) and is_part(path)]


def check_replaced_parts(slug: str, shards: Collection[str], layout: Layout) -> None:
    """See that the parts of a teacher that is new to the store take no person's place.

    Raises:
        StoreError: files that are no parts of ours lie there.
    """
    paths = [layout.features(slug, shard) for shard in shards]
    if others := [path for path in paths if os.path.lexists(path) and not is_part(path)]:
        raise _foreign(others)


def unplanned_indices(slug: str, splits: Collection[str], recorded: Mapping[str, str], layout: Layout) -> list[Path]:
    """Return the indices and cards, of a teacher, that the manifest `recorded` by checksum and are of no such split."""
    found = []
    for split, digest in recorded.items():
        path = layout.index(slug, split)
        if split not in splits and is_plain(path) and file_digest(path) == digest:
            found += [path, layout.index_card(slug, split)]
    return found


def check_truth(before: Manifest | None, layout: Layout) -> None:
    """See that a source without a truth takes away none but the store's own.

    Raises:
        StoreError: there is a table that the manifest does not name as it is.
    """
    check_known((layout.relevance, layout.caption_pairs), before)


def check_known(paths: Iterable[Path], before: Manifest | None) -> None:
    """See that those of these tables which are there are the store's own.

    Raises:
        StoreError: there is one that the manifest does not name as it is.
    """
    known = before.files if before else {}
    there = [path for path in paths if os.path.lexists(path)]
    if others := [path for path in there if not is_plain(path) or file_digest(path) != known.get(path.name)]:
        raise _foreign(others)


def _foreign(paths: Collection[Path]) -> StoreError:
    return StoreError(
        f"{', '.join(map(str, paths))}: the store's own file belongs there, and this one is not known to be of its "
        f"making. Move it out of the store (or delete it, if a stopped run left it), and run the same command again."
    )


def _receipt_digest(name: str, layout: Layout) -> str | None:
    try:
        return read_receipt(layout.shard_receipt(name)).sha256
    except StoreError:
        return None
