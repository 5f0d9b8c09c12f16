"""From a user's file of features to the store's parts: rows found by order or key, checked, and copied per shard.

Shapes: n rows of a shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.imports.feature_files import FileRows, Spool, open_rows
from stores import Shard, SourceError, tables
from stores.digests import file_digest, file_state, value_digest
from stores.layout import Layout
from stores.manifest import FeatureSet
from stores.modality import Level
from stores.parameters import FeatureFile

LARGEST: Final = 65504.0
"""Of float16."""
_CAPTION: Final = re.compile(r"#\d+$")
_NAMED: Final = 3
"""Rows and keys that a message names."""
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FeatureImport:
    """What the user asked for under a name, and the fingerprint that covers it."""

    name: str
    settings: FeatureFile
    fingerprint: str
    versions: Mapping[Path, tuple[int, int, int] | None]
    """By what it shows that a file is no longer the one of the fingerprint."""
    shape: ClassVar[tuple[int, ...]] = ()
    """Of a row: known when the files are opened."""

    @property
    def in_order(self) -> bool:
        """Whether rows are found by their order."""
        return self.settings.key is None

    @property
    def level(self) -> Level:
        return self.settings.level

    @property
    def unit(self) -> bool:
        return self.settings.unit

    @property
    def spec(self) -> str:
        """The files."""
        return ", ".join(map(str, _files(self.settings).values()))

    @classmethod
    def of(cls, name: str, settings: FeatureFile, held: FeatureSet | None = None) -> FeatureImport:
        """Read the files' checksums; `held` are the features that the store has under the name.

        Raises:
            SourceError: a file is not there.
        """
        try:
            versions = {path: file_state(path) for path in _files(settings).values()}
            digests = {split: file_digest(path) for split, path in _files(settings).items()}
        except OSError as error:
            raise SourceError(
                f"data.features.{name}: {error.filename} cannot be read ({error.strerror}). Name a file."
            ) from None
        identity = ["imported", settings.level, settings.array, settings.key, settings.unit, digests]
        fingerprint = value_digest(identity)
        if settings.unit and not (held and held.fingerprint == fingerprint and len(held.shape) == 1):
            # Several vectors a row were not brought to length one each before; single ones made then are as now.
            fingerprint = value_digest([*identity, "each vector"])
        return cls(name=name, settings=settings, fingerprint=fingerprint, versions=versions)

    def parts(
        self, shards: Sequence[Shard], pending: Sequence[Shard], layout: Layout
    ) -> Iterator[tuple[Shard, NDArray[np.float16], NDArray[np.bool_]]]:
        """Yield each of the `pending` ones among all `shards`, its features (rows, …), and (rows,) which are there.

        Raises:
            SourceError: a file cannot be read, is changed meanwhile, has another number of rows than the store, keys
                that the store does not know, or a number that is not finite; or the store has no rows of the level.
        """
        if not shards:
            raise SourceError(
                f"data.features.{self.name} is of classes, and the store has none: no sample has a label. Name the "
                f"column of labels (data.columns.label), or give features of samples."
            )
        wanted = {shard.name for shard in pending}
        with Spool(layout.root) as spool:
            files = _opened(self, spool)
            places = _by_key if self.settings.key else _in_order
            for shard, found, rows in places(self, files, shards, layout):
                if shard.name in wanted:
                    features = np.zeros((len(rows), *found.shape[1:]), np.float16)
                    valid = rows >= 0
                    features[valid] = _checked(found, rows[valid], self)
                    self._check_unchanged()
                    yield shard, features, valid

    def _check_unchanged(self) -> None:
        for path, version in self.versions.items():
            if file_state(path) != version:
                raise SourceError(f"{path} was changed while it was imported. Run the same command again.")


def _opened(wanted: FeatureImport, spool: Spool) -> dict[str, FileRows]:
    settings = wanted.settings
    files = {split: open_rows(path, settings.array, settings.key, spool) for split, path in _files(settings).items()}
    if len({found.shape[1:] for found in files.values()}) > 1:
        shapes = ", ".join(f"{found.path} {found.shape[1:]}" for found in files.values())
        raise SourceError(f"data.features.{wanted.name}: the rows are not of one shape: {shapes}.")
    return files


def _files(settings: FeatureFile) -> dict[str, Path]:
    """Return the files by split; the one of all splits under no name."""
    if isinstance(settings.file, str):
        return {"": Path(settings.file)}
    return {split: Path(path) for split, path in settings.file.items()}


def absent_file(settings: FeatureFile) -> Path | None:
    """Return the first file that is not there."""
    return next((path for path in _files(settings).values() if not path.exists()), None)


Place = tuple[Shard, FileRows, Rows]
"""A shard, the file that has its rows, and each row's number there, −1 where it has none: (n,)."""


def _in_order(
    wanted: FeatureImport, files: Mapping[str, FileRows], shards: Sequence[Shard], layout: Layout
) -> Iterator[Place]:
    """Take rows in the order of the source, which is known within a split."""
    level, where = wanted.settings.level, f"data.features.{wanted.name}"
    splits = list(dict.fromkeys(shard.split for shard in shards))
    if level == "class":
        raise SourceError(f"{where}: classes have no order. Name each row's class: say which array or column with key.")
    if "" in files and len(splits) > 1:
        raise SourceError(
            f"{where}: {files[''].path} is one file for the splits {', '.join(splits)}, and the order of rows is known "
            f"within a split alone. Name a file per split ({{{splits[0]}: …}}), or each row's sample with key."
        )
    by_split = {splits[0]: files[""]} if "" in files else dict(files)
    if unknown := by_split.keys() - set(splits):
        raise SourceError(f"{where}: the store has no split {sorted(unknown)[0]!r}; it has {', '.join(splits)}.")
    for split, found in by_split.items():
        held = sum(shard.rows(level) for shard in shards if shard.split == split)
        if found.shape[0] != held:
            left_out = layout.quarantine.read_bytes().count(b"\n")
            raise SourceError(
                f"{where}: {found.path} has {found.shape[0]:,} rows; the split {split!r} has {held:,} {level}s"
                f"{f' (the store left out {left_out:,} records: quarantine.jsonl)' if left_out else ''}. In the order "
                f"of the source there must be as many, or name each row's sample with key."
            )
    starts = dict.fromkeys(splits, 0)
    for shard in shards:
        count, start = shard.rows(level), starts[shard.split]
        starts[shard.split] += count
        rows = np.arange(start, start + count)
        if shard.split in by_split:
            yield shard, by_split[shard.split], rows
        else:  # no file for the split: all its rows are absent
            yield shard, next(iter(by_split.values())), np.full(count, -1)


def _by_key(
    wanted: FeatureImport, files: Mapping[str, FileRows], shards: Sequence[Shard], layout: Layout
) -> Iterator[Place]:
    """Find each row of the store by its name: a sample's id in the source, with `#n` its n-th caption, or a class's."""
    level, where = wanted.settings.level, f"data.features.{wanted.name}"
    names = _names(level, layout)
    for split, found in files.items():
        own = names if not split else _of_split(names, split, shards, level)
        _check_keys(where, found, own, layout)
    for shard in shards:
        of_split = files.get(shard.split) or files.get("")
        held = names.slice(shard.first_row(level), shard.rows(level)).combine_chunks()
        if of_split is None:
            yield shard, next(iter(files.values())), np.full(len(held), -1)
            continue
        places = pc.index_in(held, value_set=pa.array(of_split.keys, pa.large_string()))
        yield shard, of_split, pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _names(level: Level, layout: Layout) -> pa.ChunkedArray:
    """Return what keys call the rows of a level; captions count from 0 within their sample.

    They are large strings: an array of plain ones holds at most 2 GiB.
    """
    if level == "class":
        return tables.read_table(layout.classes, tables.CLASSES)["name"].cast(pa.large_string())
    samples = tables.read_table(layout.samples, tables.SAMPLES)
    ids = samples["source_id"].cast(pa.large_string())
    if level == "sample":
        return ids
    counts = samples["caption_count"].to_numpy()
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    repeated = ids.take(np.repeat(np.arange(len(counts)), counts))
    hash_sign = pa.scalar("#", pa.large_string())
    return pc.binary_join_element_wise(repeated, pa.array(places).cast(pa.large_string()), hash_sign)


def _of_split(names: pa.ChunkedArray, split: str, shards: Sequence[Shard], level: Any) -> pa.ChunkedArray:
    own = [names.slice(shard.first_row(level), shard.rows(level)) for shard in shards if shard.split == split]
    return pa.chunked_array([chunk for part in own for chunk in part.chunks], pa.large_string())


def _check_keys(where: str, found: FileRows, names: pa.ChunkedArray, layout: Layout) -> None:
    keys = pa.array(found.keys, pa.large_string())
    if len(keys) != len(pc.unique(keys)):
        doubled = next(row["values"] for row in pc.value_counts(keys).to_pylist() if row["counts"] > 1)
        raise SourceError(f"{where}: {found.path} names {doubled!r} twice. Each row has a key of its own.")
    known = pc.is_in(keys, value_set=names)
    unknown = keys.filter(pc.invert(known)).to_pylist()
    if unknown and layout.quarantine.is_file():
        with layout.quarantine.open(encoding="utf-8") as lines:
            left_out = {json.loads(line)["source_id"] for line in lines}
        unknown = [key for key in unknown if left_out.isdisjoint((key, _CAPTION.sub("", key)))]
    if unknown:
        shown, like = ", ".join(map(repr, unknown[:_NAMED])), ", ".join(map(repr, names.slice(0, _NAMED).to_pylist()))
        raise SourceError(
            f"{where}: {found.path} has {len(unknown):,} keys that the store does not know ({shown}); it knows names "
            f"such as {like}. Name rows as the source does, and leave out what the store does not have."
        )
    if not pc.any(known).as_py():
        raise SourceError(f"{where}: {found.path} has none of the store's {len(names):,} names.")


def _checked(found: FileRows, rows: Rows, wanted: FeatureImport) -> NDArray[np.float16]:
    """Return rows as float16, at length one if asked; refuse what is not finite."""
    given, unit = found.read(rows), wanted.settings.unit
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = given.astype(np.float32)
        if unit:
            values = values / np.linalg.norm(values, axis=-1, keepdims=True)
        features = values.astype(np.float16)
    fine = np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    if not fine.all():
        first = int(np.argmin(fine))
        bad = given[first][~np.isfinite(features[first])][0]
        named = f" ({found.keys[rows[first]]})" if found.keys is not None else ""
        what = f"beyond ± {LARGEST:,.0f}, the largest of float16" if np.isfinite(bad) else "which is no number"
        if unit and np.isfinite(bad):
            what = "whose length is zero, so it has none of length one"
        raise SourceError(
            f"data.features.{wanted.name}: row {rows[first]:,}{named} of {found.path} holds {bad}, {what}. "
            f"{int((~fine).sum()):,} of the {len(rows):,} rows read with it are so. Mend the file and run again."
        )
    return features
