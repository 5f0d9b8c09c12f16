"""What cusa-extract would make again, found by its own tests of tables, shards, feature parts and indices.

The data set is not asked: that the shards are what it says now, only cusa-extract can tell. The tables are held
against the shards, of which they are a function, row by row.
"""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.indices.cards import IndexOrigin, index_fault, read_card
from pipeline.inspection.checks import AGAIN, Check, Fault, digest_fault
from pipeline.inspection.teachers import is_default
from pipeline.receipts import read_receipt
from pipeline.tabulate import table_batches
from pipeline.unplanned import STORE_KINDS
from stores import Shard, Store, StoreError, tables
from stores.digests import value_digest
from stores.features import PartFault, PartOrigin, read_part
from stores.layout import Layout
from stores.ownership import leftovers

_NORM_TOLERANCE: Final = 1e-2
"""How far a valid row's length may be from 1; rounding to float16 stays far within."""
_TRUTH: Final = ("pairing.arrow", "relevance.arrow", "caption_pairs.arrow", "classes.arrow")


class DryRun:
    """The checks of a store's files: `tables`, on which others rest, and `all` in their order."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout, self._manifest = store, Layout(store.root), store.manifest
        shards, features = store.manifest.shards, store.manifest.features
        self._batches = table_batches(shards, self._layout)
        self._valid: Counter[tuple[str, str]] = Counter()
        """How many rows there are of each features and split, as far as their parts were read."""
        parts = [(slug, shard) for slug, entry in features.items() for shard in self._manifest.shards_of(entry.level)]
        indexed = [slug for slug, entry in features.items() if entry.indexed and entry.level != "class"]
        self.tables = Check("tables", list(self._manifest.files), self._table)
        self._shards = Check("shards", shards, self._shard)
        self._features = Check("features", parts, self._part)
        self.all = [
            self.tables,
            self._shards,
            Check("rows", range(len(shards)), self._rows, needs=[self.tables]),
            Check("truth", [name for name in _TRUTH if name in store.manifest.files], self._truth, needs=[self.tables]),
            self._features,
            Check("absent rows", list(features), self._absent),
            Check("indices", [(slug, split) for slug in indexed for split in self._manifest.splits], self._index),
        ]

    def _table(self, name: str) -> Iterator[Fault]:
        if found := digest_fault(self._store.root / name, self._manifest.files[name]):
            yield Fault(name, found)
        elif name in tables.SCHEMAS:
            try:
                tables.read_table(self._store.root / name, tables.SCHEMAS[name])
            except StoreError as error:
                yield Fault(name, error.message)

    def _shard(self, shard: Shard) -> Iterator[Fault]:
        tar, receipt_path = self._layout.shard(shard.name), self._layout.shard_receipt(shard.name)
        size = tar.stat().st_size if tar.is_file() else shard.bytes
        short = f"{size:,} bytes, the manifest says {shard.bytes:,}" if size != shard.bytes else None
        if found := short or digest_fault(tar, shard.sha256):
            yield Fault(f"shards/{tar.name}", found)
        try:
            receipt = read_receipt(receipt_path)
        except StoreError as error:
            yield Fault(f"shards/{receipt_path.name}", error.message)
            return
        claims = ((name, getattr(receipt, name), getattr(shard, name)) for name in ("samples", "captions", "bytes"))
        wrong = [f"{name} {ours:,}, the manifest says {theirs:,}" for name, ours, theirs in claims if ours != theirs]
        wrong += ["another shard's checksum than the manifest says"] if receipt.sha256 != shard.sha256 else []
        if wrong:
            yield Fault(f"shards/{receipt_path.name}", "; ".join(wrong))

    def _rows(self, number: int) -> Iterator[Fault]:
        """Make the tables' rows of a shard anew."""
        shard = self._manifest.shards[number]
        if any(fault.file == f"shards/{shard.name}.tar" for fault in self._shards.faults):
            return
        try:
            made = self._batches(number)
        except (StoreError, tarfile.TarError, TypeError, ValueError) as error:
            yield Fault(f"shards/{shard.name}.tar", f"its samples cannot be read: {error}")
            return
        for (name, reader), batch in zip(self._held.items(), made, strict=True):
            batches, expected = reader.num_record_batches, len(self._manifest.shards)
            if batches != expected:
                yield Fault(name, f"rows of {batches:,} shards, the manifest says {expected:,}")
                continue
            found = reader.get_batch(number)
            other = [column for column in batch.schema.names if not found[column].equals(batch[column])]
            if other:
                yield Fault(name, f"rows of {shard.name} are not those of its tar, in the columns {', '.join(other)}")

    @cached_property
    def _held(self) -> dict[str, Any]:
        files = ((self._layout.samples, tables.SAMPLES), (self._layout.captions, tables.CAPTIONS))
        return {path.name: tables.open_batches(path, schema) for path, schema in files}

    def _truth(self, name: str) -> Iterator[Fault]:
        """See that a table of the truth names rows that the store has, or as many classes as the manifest."""
        table, classes = tables.read_table(self._store.root / name, tables.SCHEMAS[name]), self._manifest.classes
        if name == "classes.arrow":
            if len(table) != classes:
                yield Fault("manifest.json", f"{classes:,} classes, {name} holds {len(table):,}")
            return
        for column in set(table.column_names) - {"similarity"}:
            most = sum(shard.rows("sample" if column == "sample" else "caption") for shard in self._manifest.shards)
            chunks = [chunk.to_numpy() for chunk in table[column].chunks if len(chunk)]
            if any(chunk.min() < 0 or chunk.max() >= most for chunk in chunks):
                yield Fault(name, f"rows that the store does not have in the column {column}")

    def _part(self, thing: tuple[str, Shard]) -> Iterator[Fault]:
        slug, shard = thing
        entry, path = self._manifest.features[slug], self._layout.features(slug, shard.name)
        origin = PartOrigin(teacher_fingerprint=entry.fingerprint, shard_sha256=shard.sha256)
        expected = entry.parts.get(shard.name)
        try:
            features, valid = read_part(path, (shard.rows(entry.level), *entry.shape), origin)
        except PartFault as fault:
            found = [fault.message]
        else:
            changed = digest_fault(path, expected) if expected else "the manifest names no such part"
            found = [changed] if changed else []
            found += _value_faults(features, valid, entry.unit)
            self._valid[slug, shard.split] += int(valid.sum())
        yield from (Fault(f"features/{slug}/{path.name}", what, self._remedy(slug)) for what in found)

    def _absent(self, slug: str) -> Iterator[Fault]:
        entry = self._manifest.features[slug]
        rows = sum(shard.rows(entry.level) for shard in self._manifest.shards_of(entry.level))
        absent = rows - sum(count for (name, _), count in self._valid.items() if name == slug)
        if absent != entry.invalid and not self._is_damaged(slug):
            what = f"{absent:,} rows of {slug} are marked as absent, the manifest says {entry.invalid:,}"
            yield Fault("manifest.json", what)

    def _index(self, thing: tuple[str, str]) -> Iterator[Fault]:
        slug, split = thing
        path, card_path = self._layout.index(slug, split), self._layout.index_card(slug, split)
        card = read_card(card_path) or {}
        parts = [self._manifest.features[slug].parts.get(shard.name) for shard in self._store.shards(split)]
        kind, min_recall = card.get("kind", ""), card.get("min_recall")
        origin = IndexOrigin(features=value_digest(parts), kind=kind, min_recall=min_recall)
        found, digest = index_fault(path, card_path, origin)
        wrong = path if found == "damaged: checksum" or not path.is_file() else card_path
        recorded = self._manifest.indices.get(slug, {}).get(split)
        if found is None and digest != recorded:
            found = f"sha256 {digest[:12]}…, the manifest says {recorded[:12]}…" if recorded else "not in the manifest"
        described, rows = card.get("rows"), self._valid[slug, split]
        if found is None and described != rows and not self._is_damaged(slug):
            found, wrong = f"it describes {described} rows, the teacher encoded {rows:,}", card_path
        if found:
            yield Fault(f"indices/{slug}/{wrong.name}", found, self._remedy(slug))

    def _is_damaged(self, slug: str) -> bool:
        return any(fault.file.startswith(f"features/{slug}/") for fault in self._features.faults)

    def _remedy(self, slug: str) -> str:
        if is_default(self._manifest, slug):
            return AGAIN
        entry = self._manifest.features[slug]
        what = f"the teacher {entry.spec}" if entry.precision else f"--features {slug}={entry.spec}"
        return f"Run cusa-extract with {what}: it makes what is damaged anew."

    def strays(self) -> Iterator[str]:
        """Yield a remark on each file in the store that nothing names."""
        manifest, layout = self._manifest, self._layout
        planned = {layout.mark, layout.lock, layout.manifest, *(layout.root / name for name in manifest.files)}
        planned |= {place(shard.name) for shard in manifest.shards for place in (layout.shard, layout.shard_receipt)}
        planned |= {layout.features(slug, part) for slug, entry in manifest.features.items() for part in entry.parts}
        indices = [(slug, split) for slug, splits in manifest.indices.items() for split in splits]
        planned |= {place(*index) for index in indices for place in (layout.index, layout.index_card)}
        left = leftovers(layout.root, STORE_KINDS)
        for path in sorted(layout.root.rglob("*")):
            place = path.relative_to(layout.root).as_posix()
            if path in left:
                yield f"{place} was left by a run that was stopped; the next cusa-extract removes it."
            elif not (path.is_dir() or path in planned or self._is_of_empty_shard(path)):
                remark = "belongs to nothing that the manifest names. Nothing reads it; delete it if it is not yours."
                yield f"{place} {remark}"

    def _is_of_empty_shard(self, path: Path) -> bool:
        """Tell whether a file is of a shard that is absent from the manifest since all its records were rejected."""
        try:
            receipt = self._layout.shard_receipt(path.stem)
            return path.parent == receipt.parent and read_receipt(receipt).samples == 0
        except StoreError:
            return False


def _value_faults(features: NDArray[np.float16], valid: NDArray[np.bool_], unit: bool) -> list[str]:
    """Return which claims do not hold: finite, zero where absent, else of vectors of length 1 if so claimed."""
    norms = np.linalg.norm(features.astype(np.float32), axis=-1).reshape(len(features), math.prod(features.shape[1:-1]))
    finite, stray = np.isfinite(norms).all(axis=1), (np.abs(norms - 1) > _NORM_TOLERANCE).any(axis=1)
    wrong = {
        "not finite": ~finite,
        f"of another length than 1 (± {_NORM_TOLERANCE})": finite & valid & stray & unit,
        "marked as absent and yet not zero": finite & ~valid & norms.any(axis=1),
    }
    return [
        f"{int(rows.sum()):,} of {len(rows):,} rows are {what}; the first is the part's row {int(rows.argmax())}"
        for what, rows in wrong.items()
        if rows.any()
    ]
