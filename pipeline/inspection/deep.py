"""The deep checks: every image is decoded and held against its checksum; a sample of rows is encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.teachers import Teacher
from models.teachers.teacher import MIN_COSINE
from pipeline.inspection.checks import Check, Fault
from pipeline.inspection.teachers import encode, is_default, load_stored
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
    shards = store.manifest.shards
    checks = [Check("images", shards, partial(_images, store), count=lambda shard: shard.samples, needs=[tables])]
    for slug, stored in store.manifest.teachers.items() if sample else ():
        last = is_default(store.manifest, slug)
        try:
            teacher = load_stored(store, slug, weights.get(stored.modality) if last else None)
        except TeacherError as error:
            if last:
                raise
            remarks.append(f"{slug} was not encoded again: {error.message}")
            continue
        total = sum(shard.rows(teacher.level) for shard in shards)
        rows = np.unique(np.linspace(0, total - 1, min(sample, total)).round().astype(np.int64))
        batches = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
        check = Check(f"encoded again: {slug}", batches, lambda _: (), count=len, needs=[tables])
        check.look = partial(_compare, store, slug, teacher, check)
        checks.append(check)
    return checks


def _images(store: Store, shard: Shard) -> Iterator[Fault]:
    expected = [Column(store.samples[name]) for name in ("key", "image_sha256", "width", "height")]
    found: list[str] = []
    end = shard.first_sample + shard.samples
    with ThreadPoolExecutor(thread_name_prefix="decode") as threads:
        for first in range(shard.first_sample, end, _BLOCK):
            count = min(_BLOCK, end - first)
            claims = zip(*(column.run(first, count).to_pylist() for column in expected), strict=True)
            try:
                data = [store.images[row] for row in range(first, first + count)]
                found += [what for what in threads.map(_image_fault, data, claims) if what]
            except StoreError as error:
                found.append(error.message)
    if found:
        more = f" (and {len(found) - 1:,} more of this shard)" if len(found) > 1 else ""
        yield Fault(f"shards/{shard.name}.tar", found[0] + more)


def _image_fault(data: bytes, claims: tuple[str, str | None, int, int]) -> str | None:
    key, sha256, width, height = claims
    if sha256 is None:
        return f"the sample {key} should have no image" if data else None
    if hashlib.sha256(data).hexdigest() != sha256:
        return f"the image {key} has another sha256 than samples.arrow says"
    try:
        size = decode_rgb(data).size
    except OSError as error:
        return f"the image {key} cannot be decoded: {error}"
    return None if size == (width, height) else f"the image {key} is {size[0]} × {size[1]}, not {width} × {height}"


def _compare(store: Store, slug: str, teacher: Teacher, check: Check, rows: NDArray[np.int64]) -> Iterator[Fault]:
    try:
        stored = store.features(slug).gather(rows).astype(np.float32)
        fresh = _encoded(store, teacher, rows)
    except StoreError as error:
        yield Fault(f"features/{slug}", error.message)
        return
    for row, old, new in zip(rows.tolist(), stored, fresh, strict=True):
        if not old.any() and not new.any():
            continue
        cosine = float(old @ new / max(float(np.linalg.norm(old) * np.linalg.norm(new)), 1e-12))
        check.note = f"smallest cosine {min(cosine, float(check.note.rpartition(' ')[2] or 1)):.6f}"
        if cosine < MIN_COSINE:
            file = f"features/{slug}/{store.manifest.shard_of(teacher.level, row).name}.h5"
            what = f"row {row} encoded again has cosine {cosine:.5f} to the stored one, expected at least {MIN_COSINE}"
            yield Fault(file, what, f"Delete {file} and run cusa-extract again: it encodes that shard anew.")


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
