"""The deep checks: every image is decoded and held against its checksum; a sample of rows is encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.teachers import Teacher
from models.teachers.teacher import MIN_COSINE
from pipeline.inspection.checks import AGAIN, Check, Fault, only_if_whole
from pipeline.inspection.loaded import encode, load_stored
from pipeline.inspection.rows import shard_of
from pipeline.inspection.teachers import is_default
from stores import Shard, Store, StoreError, TeacherError
from stores.columns import Column
from stores.images import decode_rgb

_BLOCK: Final = 256
"""Images that are read and decoded on threads together."""
_BATCH: Final = 16
"""Rows that are encoded together; few, so that a large teacher needs little memory."""


def deep_checks(
    store: Store, sample: int, weights: Mapping[str, str | None], tables: Check, remarks: list[str]
) -> list[Check]:
    """Return the deep checks, to run after `tables`.

    The teachers are loaded here, so that one that cannot be had shows before the long work. A teacher of an earlier
    run, whose weights nothing records, may be absent: that is a remark.

    Raises:
        TeacherError: a teacher that the store was last made with cannot be had.
    """
    images = sum(shard.samples for shard in store.manifest.shards)
    checks = [Check("images", images, lambda check: only_if_whole(tables, check, _images(store)))]
    for slug, stored in store.manifest.teachers.items() if sample else ():
        last = is_default(store.manifest, slug)
        try:
            teacher = load_stored(store, slug, weights.get(stored.modality) if last else None)
        except TeacherError as error:
            if last:
                raise
            remarks.append(f"{slug} was not encoded again: {error.message}")
            continue
        checks.append(_reencoding(store, slug, teacher, sample, tables))
    return checks


def _reencoding(store: Store, slug: str, teacher: Teacher, sample: int, tables: Check) -> Check:
    total = sum(shard.rows(teacher.level) for shard in store.manifest.shards)
    rows = np.unique(np.linspace(0, total - 1, min(sample, total)).round().astype(np.int64))

    def run(check: Check) -> Iterator[Sequence[Fault]]:
        return only_if_whole(tables, check, _compare(store, slug, teacher, rows, check))

    return Check(f"encoded again: {slug}", len(rows), run)


def _images(store: Store) -> Iterator[Sequence[Fault]]:
    try:
        expected = {name: Column(store.samples[name]) for name in ("key", "image_sha256", "width", "height")}
        images = store.images
    except StoreError as error:
        yield [Fault("samples.arrow", error.message, AGAIN)]
        return
    with ThreadPoolExecutor(thread_name_prefix="decode") as threads:
        for shard in store.manifest.shards:
            found: list[str] = []
            end = shard.first_sample + shard.samples
            for first in range(shard.first_sample, end, _BLOCK):
                count = min(_BLOCK, end - first)
                claims = zip(*(column.run(first, count).to_pylist() for column in expected.values()), strict=True)
                try:
                    data = [images[row] for row in range(first, first + count)]
                    found += [what for what in threads.map(_image_fault, data, claims) if what]
                except StoreError as error:
                    found.append(error.message)
                yield from repeat((), count - 1)
                yield [_of_shard(shard, found)] if found and first + count == end else []


def _of_shard(shard: Shard, found: list[str]) -> Fault:
    more = f" (and {len(found) - 1:,} more of this shard)" if len(found) > 1 else ""
    return Fault(f"shards/{shard.name}.tar", found[0] + more, AGAIN)


def _image_fault(data: bytes, claims: tuple[str, str, int, int]) -> str | None:
    key, sha256, width, height = claims
    if hashlib.sha256(data).hexdigest() != sha256:
        return f"the image {key} has another sha256 than samples.arrow says"
    try:
        size = decode_rgb(data).size
    except OSError as error:
        return f"the image {key} cannot be decoded: {error}"
    return None if size == (width, height) else f"the image {key} is {size[0]} × {size[1]}, not {width} × {height}"


def _compare(
    store: Store, slug: str, teacher: Teacher, rows: NDArray[np.int64], check: Check
) -> Iterator[Sequence[Fault]]:
    smallest = 1.0
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        try:
            stored = store.features(slug).gather(batch).astype(np.float32)
            fresh = _encoded(store, teacher, batch)
        except StoreError as error:
            yield [Fault(f"features/{slug}", error.message, AGAIN)]
            yield from repeat((), len(batch) - 1)
            continue
        for row, old, new in zip(batch, stored, fresh, strict=True):
            if not old.any() and not new.any():
                yield []
                continue
            cosine = float(old @ new / max(float(np.linalg.norm(old) * np.linalg.norm(new)), 1e-12))
            smallest = min(smallest, cosine)
            check.note = f"smallest cosine {smallest:.6f}"
            yield [] if cosine >= MIN_COSINE else [_strayed(store, slug, int(row), cosine)]


def _encoded(store: Store, teacher: Teacher, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the features of `rows` (n,) encoded anew: (n, dim); a row that cannot be encoded is all zero."""
    if teacher.modality == "text":
        return encode(teacher, Column(store.captions["text"]).values(rows))
    pictures = {}
    for place, row in enumerate(rows):
        try:
            pictures[place] = decode_rgb(store.images[int(row)])
        except OSError:
            continue
    fresh = np.zeros((len(rows), teacher.dim), np.float32)
    if pictures:
        fresh[list(pictures)] = encode(teacher, list(pictures.values()))
    return fresh


def _strayed(store: Store, slug: str, row: int, cosine: float) -> Fault:
    level = store.manifest.teachers[slug].level
    file = f"features/{slug}/{shard_of(store, level, row).name}.h5"
    what = f"row {row} encoded again has cosine {cosine:.5f} to the stored feature, expected at least {MIN_COSINE}"
    return Fault(file, what, f"Delete {file} and run cusa-extract again: it encodes that shard anew.")
