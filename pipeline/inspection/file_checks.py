"""The checks of whole files: tables, shards and their receipts, feature parts, indices; and files that nobody names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.inspection.checks import AGAIN, Check, Fault, digest_fault
from pipeline.inspection.teachers import is_default
from pipeline.receipts import read_receipt
from pipeline.unplanned import STORE_KINDS
from stores import Manifest, Shard, Store, StoreError
from stores.features import PartFault, PartOrigin, read_part
from stores.layout import Layout
from stores.manifest import FeatureSet
from stores.ownership import leftovers

NORM_TOLERANCE: Final = 1e-2
"""How far a valid row's length may be from 1; rounding to float16 stays far within."""


def file_checks(store: Store) -> list[Check]:
    """Return the checks of every file that the manifest names; the first is that of the tables."""
    manifest = store.manifest
    parts = sum(len(manifest.shards_of(entry.level)) for entry in manifest.features.values())
    indexed = sum(entry.indexed for entry in manifest.features.values())
    return [
        Check("tables", len(manifest.files), lambda check: _tables(store)),
        Check("shards", len(manifest.shards), lambda check: _shards(store)),
        Check("receipts", len(manifest.shards), lambda check: _receipts(store)),
        Check("features", parts, lambda check: _features(store, check)),
        Check("indices", indexed * len(manifest.splits), lambda check: _indices(store)),
    ]


def _tables(store: Store) -> Iterator[Sequence[Fault]]:
    for name, expected in store.manifest.files.items():
        found = digest_fault(store.root / name, expected, "the manifest")
        yield [Fault(name, found, AGAIN)] if found else []


def _shards(store: Store) -> Iterator[Sequence[Fault]]:
    layout = Layout(store.root)
    for shard in store.manifest.shards:
        path = layout.shard(shard.name)
        size = path.stat().st_size if path.is_file() else None
        if size not in (None, shard.bytes):
            found: str | None = f"{size:,} bytes, the manifest says {shard.bytes:,}"
        else:
            found = digest_fault(path, shard.sha256, "the manifest")
        yield [Fault(f"shards/{path.name}", found, AGAIN)] if found else []


def _receipts(store: Store) -> Iterator[Sequence[Fault]]:
    layout = Layout(store.root)
    for shard in store.manifest.shards:
        path = layout.shard_receipt(shard.name)
        try:
            receipt = read_receipt(path)
        except StoreError as error:
            found: list[str] = [error.message]
        else:
            claims = ((name, getattr(receipt, name), getattr(shard, name)) for name in ("samples", "captions", "bytes"))
            found = [
                f"{name} {ours:,}, the manifest says {theirs:,}" for name, ours, theirs in claims if ours != theirs
            ]
            if receipt.sha256 != shard.sha256:
                found.append("another shard's checksum than the manifest says")
        yield [Fault(f"shards/{path.name}", "; ".join(found), AGAIN)] if found else []


def _features(store: Store, check: Check) -> Iterator[Sequence[Fault]]:
    manifest, layout = store.manifest, Layout(store.root)
    rows = 0
    for slug, entry in manifest.features.items():
        invalid, whole = 0, True
        shards = manifest.shards_of(entry.level)
        for shard in shards:
            path = layout.features(slug, shard.name)
            found, failed = _part(path, shard, entry)
            invalid, whole, rows = invalid + failed, whole and not found, rows + shard.rows(entry.level)
            faults = [Fault(f"features/{slug}/{path.name}", what, _remedy(manifest, slug)) for what in found]
            if shard is shards[-1] and whole and invalid != entry.invalid:
                what = f"{invalid:,} rows of {slug} are marked as absent, the manifest says {entry.invalid:,}"
                faults.append(Fault("manifest.json", what, AGAIN))
            yield faults
    check.note = f"{rows:,} rows"


def _part(path: Path, shard: Shard, entry: FeatureSet) -> tuple[list[str], int]:
    """Return what is wrong with a feature part, and how many of its rows are marked as failed."""
    origin = PartOrigin(teacher_fingerprint=entry.fingerprint, shard_sha256=shard.sha256)
    try:
        features, valid = read_part(path, (shard.rows(entry.level), *entry.shape), origin)
    except PartFault as fault:
        return [fault.message], 0
    expected = entry.parts.get(shard.name)
    if expected is None:
        found = ["the manifest names no such part"]
    else:
        changed = digest_fault(path, expected, "the manifest")
        found = [changed] if changed else []
    return found + _value_faults(features.reshape(len(features), -1), valid, entry.unit), int((~valid).sum())


def _value_faults(features: NDArray[np.float16], valid: NDArray[np.bool_], unit: bool) -> list[str]:
    """Return which claims about the values do not hold: finite, zero where absent, else of length 1 if so claimed."""
    norms = np.linalg.norm(features.astype(np.float32), axis=1)
    wrong = {
        "not finite": ~np.isfinite(norms),
        f"of another length than 1 (± {NORM_TOLERANCE})": np.isfinite(norms)
        & valid
        & unit
        & (np.abs(norms - 1) > NORM_TOLERANCE),
        "marked as absent and yet not zero": np.isfinite(norms) & ~valid & (norms != 0),
    }
    return [
        f"{int(rows.sum()):,} of {len(rows):,} rows are {what}; the first is the part's row {int(rows.argmax())}"
        for what, rows in wrong.items()
        if rows.any()
    ]


def _indices(store: Store) -> Iterator[Sequence[Fault]]:
    manifest, layout = store.manifest, Layout(store.root)
    for slug, entry in manifest.features.items():
        if not entry.indexed:
            continue
        valid = _valid(store, slug)
        for split in manifest.splits:
            path, card_path = layout.index(slug, split), layout.index_card(slug, split)
            expected = manifest.indices.get(slug, {}).get(split)
            rows = None if valid is None else int(valid[store.rows(split, entry.level)].sum())
            found = "the manifest names no such index" if expected is None else _index(store, slug, split, rows)
            faults = [Fault(f"indices/{slug}/{path.name}", found, _remedy(manifest, slug))] if found else []
            if claims := _card(card_path, expected, rows):
                faults.append(Fault(f"indices/{slug}/{card_path.name}", claims, _remedy(manifest, slug)))
            yield faults


def _valid(store: Store, slug: str) -> NDArray[np.bool_] | None:
    """Return which rows the teacher could encode: those are indexed. None where a part cannot be read."""
    try:
        return store.features(slug).valid
    except StoreError:
        return None


def _index(store: Store, slug: str, split: str, rows: int | None) -> str | None:
    path = Layout(store.root).index(slug, split)
    changed = digest_fault(path, store.manifest.indices[slug][split], "the manifest")
    if changed:
        return changed
    try:
        held = len(store.index(slug, split))
    except StoreError as error:
        return error.message
    return (
        None if rows is None or held == rows else f"it holds {held:,} rows, the teacher encoded {rows:,} of the split"
    )


def _card(path: Path, digest: str | None, rows: int | None) -> str | None:
    try:
        card: Any = json.loads(path.read_bytes())
        claimed, described = card["sha256"], card["rows"]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return "is no card of an index"
    if claimed != digest:
        return "it describes another index than the manifest's"
    return None if rows is None or described == rows else f"it describes {described} rows, the teacher encoded {rows:,}"


def _remedy(manifest: Manifest, slug: str) -> str:
    if is_default(manifest, slug):
        return AGAIN
    entry = manifest.features[slug]
    what = f"the teacher {entry.spec}" if entry.precision else f"--features {slug}={entry.spec}"
    return f"Run cusa-extract with {what}: it makes what is damaged anew."


def strays(store: Store) -> Iterator[str]:
    """Yield a remark on each file in the store that nothing names."""
    manifest, layout = store.manifest, Layout(store.root)
    names = {shard.name for shard in manifest.shards}
    fixed = {layout.mark, layout.lock, layout.manifest, *(layout.root / name for name in manifest.files)}
    left = leftovers(layout.root, STORE_KINDS)
    for path in sorted(layout.root.rglob("*")):
        if path.is_dir() or path in fixed:
            continue
        place = path.relative_to(layout.root).as_posix()
        if path in left:
            yield f"{place} was left by a run that was stopped; the next cusa-extract removes it."
        elif not _named(place, names, manifest, layout):
            yield f"{place} belongs to nothing that the manifest names. Nothing reads it; delete it if it is not yours."


def _named(place: str, names: set[str], manifest: Manifest, layout: Layout) -> bool:
    folder, *inner = place.split("/")
    stem, _, suffix = inner[-1].rpartition(".") if inner else ("", "", "")
    match folder, len(inner):
        case "shards", 1:
            return suffix in ("tar", "json") and (stem in names or _is_empty_shard(stem, layout))
        case "features", 2:
            return suffix == "h5" and inner[0] in manifest.features and stem in {*names, "classes"}
        case "indices", 2:
            return suffix in ("faiss", "json") and stem in manifest.indices.get(inner[0], {})
    return False


def _is_empty_shard(name: str, layout: Layout) -> bool:
    """Tell whether a shard is absent from the manifest since all its records were rejected."""
    try:
        return read_receipt(layout.shard_receipt(name)).samples == 0
    except StoreError:
        return False
