"""Stage 1, from a data set to a finished store: ingest, features, indices, and the manifest last.

Whatever is whole and made from the same inputs is kept, so a run goes on where a killed one stopped, repairs what was
damaged, and has nothing to do the second time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from models.teachers import TeacherCard, TeacherSpec
from pipeline.encode import Engine, open_engines
from pipeline.feature_sets import FeatureSets
from pipeline.imports import FeatureImport, GivenImport, absent_file
from pipeline.indices import check_index_kind
from pipeline.ingest import Ingested, ingest
from pipeline.sources import HasFeatures, Source, open_source
from pipeline.unplanned import STORE_KINDS
from stores import ExtractParameters, Manifest, ParameterError, SourceError, StoreError, TeacherError
from stores.atomic import write_text
from stores.console import console, progress_bar
from stores.digests import value_digest
from stores.features import precision_of_parts
from stores.layout import CROSS_MODAL, Layout, teacher_slug
from stores.lock import write_lock
from stores.manifest import (
    FORMAT_VERSION,
    DamagedManifest,
    class_shards,
    read_former_manifest,
    read_manifest,
    write_manifest,
)
from stores.modality import LEVELS
from stores.ownership import leftovers, remove_leftovers
from stores.parameters import Data, as_dict

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
    _check_place(parameters.data, store)
    source = open_source(parameters.data)
    made: dict[str, str] = {}
    imports, absent = _imports(source, parameters, _readable_manifest(layout))
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(_teachers(parameters, layout), settings))
        _check(engines, parameters, imports)
        made |= _claim(layout)
        stack.enter_context(write_lock(layout))
        progress = stack.enter_context(progress_bar())
        remove_leftovers(layout.root, STORE_KINDS)
        finished, before = layout.manifest.exists(), _previous(layout)
        wanted_here = {engine.card.slug: engine.card.spec for engine in engines}
        _check_folders({**wanted_here, **dict.fromkeys(imports)}, before)
        _check_links(layout, [*wanted_here, *imports, *(before.features if before else ())])
        ingested = ingest(source, parameters.data, settings.shard_size, layout, progress, before=before, retry=retry)
        made |= ingested.made
        sets = FeatureSets(
            layout=layout,
            settings=settings,
            progress=progress,
            shards=ingested.shards,
            classes=class_shards(ingested.classes, ingested.files),
            before=before,
        )
        sets.keep(wanted_here.keys() | imports.keys())
        _say_kept(absent, sets)
        for engine in engines:
            sets.extract(engine)
        for wanted in imports.values():
            sets.import_(wanted)
        made |= sets.made
        manifest = _manifest(source, ingested, sets, parameters)
        if before is None or manifest != before:
            made["manifest.json"] = "missing" if before is None else "other content"
        if not layout.manifest.exists() or manifest != read_manifest(layout):
            write_manifest(manifest, layout)
        layout.former_manifest.unlink(missing_ok=True)  # left by a run that was stopped here
    seconds = time.monotonic() - started
    return Extracted(
        manifest=manifest, ingested=ingested, made=made, repaired=finished, rows=sets.encoded, seconds=seconds
    )


def _manifest(source: Source, ingested: Ingested, sets: FeatureSets, parameters: ExtractParameters) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        source=source.description,
        source_fingerprint=value_digest([shard.sha256 for shard in ingested.shards]),
        files=ingested.files,
        shards=ingested.shards,
        features=dict(sorted(sets.features.items())),
        indices=dict(sorted(sets.indices.items())),
        classes=ingested.classes,
        parameters=_recorded(parameters),
        merged=ingested.merged,
        shared=ingested.shared,
    )


def _recorded(parameters: ExtractParameters) -> dict[str, Any]:
    """Return the parameters that a store is a function of: where it was computed is not one of them."""
    values = as_dict(parameters)
    for name in ("device", "workers", "engine"):
        del values["extract"][name]
    return values


def _teachers(parameters: ExtractParameters, layout: Layout) -> list[TeacherSpec]:
    """Return the teachers, each with what the store holds its features in."""
    before = _readable_manifest(layout)
    held = {slug: entry.precision for slug, entry in (before.teachers if before else {}).items()}
    named = [(one, teacher_slug(one.spec, one.modality or "")) for one in _named_teachers(parameters)]
    return [replace(one, held=held.get(slug) or precision_of_parts(slug, layout)) for one, slug in named]


def _named_teachers(parameters: ExtractParameters) -> list[TeacherSpec]:
    teachers = parameters.teachers
    named = [
        TeacherSpec(spec=teachers.image, weights=teachers.image_weights, modality="image"),
        TeacherSpec(spec=teachers.text, weights=teachers.text_weights, modality="text"),
    ]
    further = teachers.further
    if further is None:
        return named
    if not further.startswith(CROSS_MODAL):
        held = further in (teachers.image, teachers.text)
        return named if held else [*named, TeacherSpec(spec=further, weights=None, modality=None)]
    held_towers = {(one.spec, one.modality) for one in named}
    towers = [TeacherSpec(spec=further, weights=None, modality=modality) for modality in LEVELS]
    return [*named, *(tower for tower in towers if (tower.spec, tower.modality) not in held_towers)]


def _imports(
    source: Source, parameters: ExtractParameters, before: Manifest | None
) -> tuple[dict[str, FeatureImport | GivenImport], dict[str, Path]]:
    """Return what is imported by name: what the data set has, and what the user has, who may name it the same.

    What was imported before by the same settings, from a file that is absent now, is returned apart, with that file.
    """
    given, files = source.features if isinstance(source, HasFeatures) else {}, parameters.data.features
    imports: dict[str, FeatureImport | GivenImport] = {
        name: GivenImport(name, features) for name, features in given.items() if name not in files
    }
    absent = {}
    for name, settings in files.items():
        lost = absent_file(settings)
        if lost and before and name in before.features and _recorded_file(before, name) == as_dict(settings):
            absent[name] = lost
        else:
            imports[name] = FeatureImport.of(name, settings, before.features.get(name) if before else None)
    return imports, absent


def _recorded_file(manifest: Manifest, name: str) -> Any:
    try:
        return manifest.parameters["data"]["features"][name]
    except (KeyError, TypeError):
        return None


def _say_kept(absent: Mapping[str, Path], sets: FeatureSets) -> None:
    for name, file in absent.items():
        if name not in sets.features:
            advice = f"Bring it back, or leave data.features.{name} out."
            raise SourceError(f"data.features.{name}: {file} is absent, and must be imported again. {advice}")
        console.print(f"Kept: features/{name}, imported before; {file} is absent now.", style="yellow")


def _check(engines: Sequence[Engine], parameters: ExtractParameters, imports: Collection[str]) -> None:
    """See that all features can share a store, and that their indices can be built."""
    for engine in engines:
        if engine.card.unit:
            check_index_kind(parameters.extract, engine.card.dim)
    cards: dict[str, TeacherCard] = {}
    for engine in engines:
        other = cards.setdefault(engine.card.slug, engine.card)
        if other is not engine.card:
            raise TeacherError(
                f"{other.spec} and {engine.card.spec} would share the folder features/{other.slug}. Rename one."
            )
    if taken := cards.keys() & set(imports):
        raise ParameterError(f"data.features.{taken.pop()} bears the name of a teacher's features. Rename it.")


def _check_folders(wanted: Mapping[str, str | None], before: Manifest | None) -> None:
    """See that no features take the place of another's: by folder, the teacher's name, None of imported ones."""
    for slug, spec in wanted.items():
        held = before.features.get(slug) if before else None
        if held is not None and (held.spec if held.precision else None) != spec:
            raise TeacherError(
                f"features/{slug} holds the features of {held.spec}; those of {spec or 'your file'} would take their "
                f"place. Choose another store with --store."
            )


def _check_links(layout: Layout, slugs: Sequence[str]) -> None:
    """See that no folder that is written into is a link: files would come and go somewhere else."""
    tops = [layout.root / name for name in ("shards", "features", "indices")]
    for path in (*tops, *(top / slug for top in tops[1:] for slug in slugs)):
        if path.is_symlink():
            advice = "Put the folder itself there. The store as a whole may be a link."
            raise StoreError("a link, into which nothing is written", path=path, advice=advice)


def _check_place(data: Data, store: Path) -> None:
    """See that no store is made of itself: its shards would change while they are read."""
    if data.format == "store" and isinstance(data.source, str) and Path(data.source).resolve() == store.resolve():
        advice = "Choose another place with --store."
        raise ParameterError("the store itself", where="data.source", found=data.source, advice=advice)


def _claim(layout: Layout) -> dict[str, str]:
    """Take the folder for a store: it is empty, or bears our mark. Nothing else in it would be safe from us."""
    root, mark = layout.root, layout.mark
    try:
        root.mkdir(parents=True, exist_ok=True)
        if mark.is_file() and mark.read_bytes().startswith(_MARK.encode()):  # a person's words may follow
            return {}
        fault = "damaged" if mark.is_file() else "missing"
        if set(root.iterdir()) - set(leftovers(root, STORE_KINDS)) and _readable_manifest(layout) is None:
            raise StoreError(f"{root} is not empty and no store of ours. Choose another place with --store.")
        write_text(mark, _MARK)
    except OSError as error:
        raise StoreError(
            f"The store {root} cannot be written: {error.strerror}. Choose another with --store."
        ) from None
    return {mark.name: fault}


def _readable_manifest(layout: Layout) -> Manifest | None:
    try:
        return read_former_manifest(layout)
    except (StoreError, OSError):
        return None


def _previous(layout: Layout) -> Manifest | None:
    """Return what the store held when it was last whole, as far as that can still be read."""
    try:
        return read_former_manifest(layout)
    except DamagedManifest as error:
        console.print(f"The manifest is made again: {error.message}", style="yellow")
        layout.manifest.unlink(missing_ok=True)
        layout.former_manifest.unlink(missing_ok=True)
        return None
