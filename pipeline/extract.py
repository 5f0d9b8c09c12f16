"""Stage 1, from a data set to a finished store: ingest, features, indices, and the manifest last.

Whatever is whole and made from the same inputs is kept, so a run goes on where a killed one stopped, repairs what was
damaged, and has nothing to do the second time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from models.teachers import TeacherSpec
from pipeline.encode import Engine, extract_features, open_engines
from pipeline.indices import check_index_kind, ensure_index
from pipeline.ingest import Ingested, ingest
from pipeline.sources import open_source
from pipeline.unplanned import STORE_KINDS, check_replaced_parts, unplanned_indices, unplanned_parts
from stores import ExtractParameters, Features, Manifest, Shard, StoreError, TeacherError
from stores.atomic import write_text
from stores.console import console, progress_bar
from stores.digests import file_digest, value_digest
from stores.features import PartOrigin, is_part, part_fault
from stores.layout import Layout
from stores.lock import write_lock
from stores.manifest import (
    FORMAT_VERSION,
    DamagedManifest,
    Modality,
    TeacherFeatures,
    read_former_manifest,
    read_manifest,
    write_manifest,
)
from stores.ownership import leftovers, remove_leftovers
from stores.parameters import Extract, as_dict

_MARK: Final = "A store of cusa. Its manifest.json says what is in it.\n"


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What a run of stage 1 did."""

    manifest: Manifest
    ingested: Ingested
    made: dict[str, str]
    """Every file made in this run, and why: missing, stale, or damaged."""
    repaired: bool
    """Whether the store was finished before, so that what was missing had been lost."""
    rows: int
    seconds: float


def extract(parameters: ExtractParameters, store: Path, *, retry: bool = False) -> Extracted:
    """Bring the store up to the parameters and return what was done.

    Raises:
        CusaError: the source, a teacher, or the store's place is at fault; nothing half-made is left.
    """
    started = time.monotonic()
    layout, settings = Layout(store), parameters.extract
    source = open_source(parameters.data)
    made: dict[str, str] = {}
    rows = 0
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(_teachers(parameters), settings))
        _check(engines, settings)
        made |= _claim(layout)
        stack.enter_context(write_lock(layout))
        progress = stack.enter_context(progress_bar())
        remove_leftovers(layout.root, STORE_KINDS)
        finished, before = layout.manifest.exists(), _previous(layout)
        _check_folders(engines, before)
        ingested = ingest(source, parameters.data, settings.shard_size, layout, progress, before=before, retry=retry)
        made |= ingested.made
        slugs = {engine.card.slug for engine in engines}
        kept = _kept_teachers(before, ingested.shards, slugs, layout, settings, progress)
        teachers, indices = dict(kept.teachers), dict(kept.indices)
        made |= kept.made
        for engine in engines:
            slug = engine.card.slug
            new_here = before is None or slug not in before.teachers
            teachers[slug], done, new = _ensure_features(engine, ingested.shards, layout, settings, progress, new_here)
            _remove_unplanned_indices(slug, ingested.shards, before, layout)
            indices[slug], built = _ensure_indices(slug, teachers[slug], ingested.shards, layout, settings, progress)
            made |= done | built
            rows += new
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            source=source.description,
            source_fingerprint=value_digest([shard.sha256 for shard in ingested.shards]),
            files=ingested.files,
            shards=ingested.shards,
            teachers=dict(sorted(teachers.items())),
            indices=dict(sorted(indices.items())),
            parameters=_recorded(parameters),
            merged=ingested.merged,
            shared=ingested.shared,
        )
        if before is None or manifest != before:
            made["manifest.json"] = "missing" if before is None else "other content"
        if not layout.manifest.exists() or manifest != read_manifest(layout):
            write_manifest(manifest, layout)
    seconds = time.monotonic() - started
    return Extracted(manifest=manifest, ingested=ingested, made=made, repaired=finished, rows=rows, seconds=seconds)


def _recorded(parameters: ExtractParameters) -> dict[str, Any]:
    """Return the parameters that a store is a function of: where it was computed is not one of them."""
    values = as_dict(parameters)
    for name in ("device", "workers", "engine"):
        del values["extract"][name]
    return values


def _teachers(parameters: ExtractParameters) -> list[TeacherSpec]:
    teachers = parameters.teachers
    return [
        TeacherSpec(spec=teachers.image, weights=teachers.image_weights, modality="image"),
        TeacherSpec(spec=teachers.text, weights=teachers.text_weights, modality="text"),
    ]


def _check(engines: Sequence[Engine], settings: Extract) -> None:
    """See that the teachers can share a store, and that their indices can be built."""
    for engine in engines:
        check_index_kind(settings, engine.card.dim)
    one, other = (engine.card for engine in engines)
    if one.slug == other.slug:
        raise TeacherError(f"{one.spec} and {other.spec} would share the folder features/{one.slug}. Rename one.")


def _check_folders(engines: Sequence[Engine], before: Manifest | None) -> None:
    for card in (engine.card for engine in engines):
        held = before.teachers.get(card.slug) if before else None
        if held is not None and held.spec != card.spec:
            raise TeacherError(
                f"features/{card.slug} holds the features of {held.spec}; those of {card.spec} would take their place. "
                f"Choose another store with --store."
            )


def _claim(layout: Layout) -> dict[str, str]:
    """Take the folder for a store: it is empty, or bears our mark. Nothing else in it would be safe from us."""
    root, mark = layout.root, layout.mark
    try:
        root.mkdir(parents=True, exist_ok=True)
        if mark.is_file() and mark.read_bytes().startswith(_MARK.encode()):  # a person's words may follow
            return {}
        fault = "damaged" if mark.is_file() else "missing"
        if set(root.iterdir()) - set(leftovers(root, STORE_KINDS)) and not _has_our_manifest(layout):
            raise StoreError(f"{root} is not empty and no store of ours. Choose another place with --store.")
        write_text(mark, _MARK)
    except OSError as error:
        raise StoreError(
            f"The store {root} cannot be written: {error.strerror}. Choose another with --store."
        ) from None
    return {mark.name: fault}


def _has_our_manifest(layout: Layout) -> bool:
    try:
        return read_former_manifest(layout) is not None
    except StoreError:
        return False


def _previous(layout: Layout) -> Manifest | None:
    """Return what the store held when it was last whole, as far as that can still be read."""
    try:
        return read_former_manifest(layout)
    except DamagedManifest as error:
        console.print(f"The manifest is made again: {error.message}", style="yellow")
        layout.manifest.unlink(missing_ok=True)
        layout.former_manifest.unlink(missing_ok=True)
        return None


@dataclass(frozen=True)
class _Kept:
    teachers: dict[str, TeacherFeatures]
    indices: dict[str, dict[str, str]]
    made: dict[str, str]


def _kept_teachers(
    before: Manifest | None,
    shards: tuple[Shard, ...],
    requested: set[str],
    layout: Layout,
    settings: Extract,
    progress: Progress,
) -> _Kept:
    """Return the teachers of earlier runs whose features are whole; of the others, keep what is, for a later run."""
    kept = _Kept({}, {}, {})
    for slug, entry in before.teachers.items() if before else ():
        if slug in requested:
            continue
        faults = _part_faults(slug, entry.fingerprint, entry.modality, entry.dim, shards, layout)
        if not faults:
            kept.teachers[slug] = entry
            _remove_unplanned_indices(slug, shards, before, layout)
            kept.indices[slug], made = _ensure_indices(slug, entry, shards, layout, settings, progress)
            kept.made.update(made)
            continue
        _withdraw(slug, layout)
        for path in (layout.features(slug, name) for name in faults):
            # What is damaged serves no later run; it is known to be ours only as long as the manifest names it.
            if not is_part(path):
                path.unlink(missing_ok=True)
        console.print(
            f"Set aside: of the features of {slug}, {len(faults):,} of {len(shards):,} parts must be made "
            f"again ({next(iter(faults.values()))}). Extract with {entry.spec} to have it back; the others are kept.",
            style="yellow",
        )
    return kept


def _part_faults(
    slug: str, fingerprint: str, modality: Modality, dim: int, shards: tuple[Shard, ...], layout: Layout
) -> dict[str, str]:
    """Return which shards' feature parts must be made (again), and why."""
    faults = {}
    for shard in shards:
        origin = PartOrigin(teacher_fingerprint=fingerprint, shard_sha256=shard.sha256)
        if fault := part_fault(layout.features(slug, shard.name), shard.rows(modality), dim, origin):
            faults[shard.name] = fault
    return faults


def _ensure_features(
    engine: Engine, shards: tuple[Shard, ...], layout: Layout, settings: Extract, progress: Progress, new_here: bool
) -> tuple[TeacherFeatures, dict[str, str], int]:
    """Make the parts that are missing, stale or damaged; return the entry, what was made and why, and its rows."""
    teacher = engine.card
    faults = _part_faults(teacher.slug, teacher.fingerprint, teacher.modality, teacher.dim, shards, layout)
    if new_here:
        check_replaced_parts(teacher.slug, faults, layout)
    names = {shard.name for shard in shards}
    unplanned = unplanned_parts(teacher.slug, names, layout)
    if faults or unplanned:
        _withdraw(teacher.slug, layout)
    for path in (*unplanned, *(layout.features(teacher.slug, name) for name in faults)):
        path.unlink(missing_ok=True)
    pending = [shard for shard in shards if shard.name in faults]
    if pending:
        extract_features(engine, shards, pending, layout, settings, progress)
    entry = TeacherFeatures(
        spec=teacher.spec,
        modality=teacher.modality,
        dim=teacher.dim,
        precision=teacher.precision,
        fingerprint=teacher.fingerprint,
        parts={shard.name: file_digest(layout.features(teacher.slug, shard.name)) for shard in shards},
        invalid=0,
    )
    invalid = int((~Features(layout, teacher.slug, shards, entry).valid).sum())
    made = {f"features/{teacher.slug}/{name}": why for name, why in faults.items()}
    return replace(entry, invalid=invalid), made, sum(shard.rows(teacher.modality) for shard in pending)


def _withdraw(slug: str, layout: Layout) -> None:
    """Take a teacher out of the manifest before its parts change, so that no reader finds old and new mixed."""
    if not layout.manifest.exists():
        return
    before = read_manifest(layout)
    teachers = {name: entry for name, entry in before.teachers.items() if name != slug}
    indices = {name: entry for name, entry in before.indices.items() if name != slug}
    write_manifest(replace(before, teachers=teachers, indices=indices), layout)


def _remove_unplanned_indices(slug: str, shards: tuple[Shard, ...], before: Manifest | None, layout: Layout) -> None:
    recorded = before.indices.get(slug, {}) if before else {}
    for path in unplanned_indices(slug, {shard.split for shard in shards}, recorded, layout):
        path.unlink(missing_ok=True)


def _ensure_indices(
    slug: str,
    entry: TeacherFeatures,
    shards: tuple[Shard, ...],
    layout: Layout,
    settings: Extract,
    progress: Progress,
) -> tuple[dict[str, str], dict[str, str]]:
    features = Features(layout, slug, shards, entry)
    digests, made = {}, {}
    for split in dict.fromkeys(shard.split for shard in shards):
        of_split = tuple(shard for shard in shards if shard.split == split)
        digests[split], why = ensure_index(features, split, of_split, entry.parts, layout, settings, progress)
        if why:
            made[f"indices/{slug}/{split}"] = why
    return digests, made
