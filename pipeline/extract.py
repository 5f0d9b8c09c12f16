"""Stage 1, from a data set to a finished store: ingest, features, indices, and the manifest last.

Whatever is whole and made from the same inputs is kept, so a run goes on where a killed one stopped, repairs what was
damaged, and has nothing to do the second time.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from pipeline.encode import extract_features
from pipeline.indices import ensure_index
from pipeline.ingest import Ingested, ingest
from pipeline.sources import open_source
from pipeline.teachers import Teacher, load_teacher
from stores import ExtractParameters, Features, Manifest, Shard, StoreError, TeacherError
from stores.atomic import remove_leftovers
from stores.console import console, progress_bar
from stores.digests import file_digest, value_digest
from stores.features import PartOrigin, part_fault
from stores.layout import Layout
from stores.manifest import FORMAT_VERSION, Modality, TeacherFeatures, read_manifest, write_manifest
from stores.parameters import as_dict


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What a run of stage 1 did."""

    manifest: Manifest
    ingested: Ingested
    made: dict[str, str]
    """Every file made in this run, and why: missing, stale, or damaged."""
    rows: int
    seconds: float


def extract(parameters: ExtractParameters, store: Path) -> Extracted:
    """Bring the store up to the parameters and return what was done.

    Raises:
        CusaError: the source, a teacher, or the store's place is at fault; nothing half-made is left.
    """
    started = time.monotonic()
    layout = Layout(store)
    _prepare_folder(store)
    before = _previous(layout)
    source = open_source(parameters.data)
    with progress_bar() as progress:
        ingested = ingest(source, parameters.data, parameters.extract.shard_size, layout, progress)
        made = {f"shards/{name}": why for name, why in ingested.made.items()}
        teachers = _kept_teachers(before, ingested.shards, layout)
        indices = {slug: before.indices.get(slug, {}) for slug in teachers} if before else {}
        rows = 0
        for modality in ("image", "text"):
            teacher = _load(parameters, modality)
            entry, done, new = _ensure_features(teacher, ingested.shards, layout, parameters, progress)
            teachers[teacher.slug] = entry
            indices[teacher.slug], built = _ensure_indices(teacher.slug, entry, ingested.shards, layout)
            made |= done | built
            rows += new
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        source=source.description,
        source_fingerprint=value_digest([shard.sha256 for shard in ingested.shards]),
        files=ingested.files,
        shards=ingested.shards,
        teachers=teachers,
        indices=indices,
        parameters=as_dict(parameters),
    )
    if manifest != before or not layout.manifest.exists():
        write_manifest(manifest, layout)
    return Extracted(manifest=manifest, ingested=ingested, made=made, rows=rows, seconds=time.monotonic() - started)


def _prepare_folder(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
        remove_leftovers(store)
    except OSError as error:
        raise StoreError(
            f"The store {store} cannot be written: {error.strerror}. Choose another place with --store."
        ) from None


def _previous(layout: Layout) -> Manifest | None:
    if not layout.manifest.exists():
        return None
    try:
        return read_manifest(layout)
    except StoreError as error:
        console.print(f"[yellow]The manifest is made again:[/] {error.message}")
        layout.manifest.unlink()
        return None


def _kept_teachers(before: Manifest | None, shards: tuple[Shard, ...], layout: Layout) -> dict[str, TeacherFeatures]:
    """Return the teachers extracted earlier, if the shards are still the same; else remove their features."""
    if before is None:
        return {}
    if before.shards == shards:
        return dict(before.teachers)
    for slug in before.teachers:
        console.print(
            f"[yellow]The shards changed:[/] the indices of {slug} are removed, stale features are made again."
        )
        shutil.rmtree(layout.root / "indices" / slug, ignore_errors=True)
    return {}


def _load(parameters: ExtractParameters, modality: Modality) -> Teacher:
    teachers = parameters.teachers
    spec, weights = (
        (teachers.image, teachers.image_weights) if modality == "image" else (teachers.text, teachers.text_weights)
    )
    teacher = load_teacher(spec, weights, parameters.extract.device, parameters.extract.precision)
    if teacher.modality != modality:
        raise TeacherError(f"teachers.{modality} is {spec}, which is a teacher of {teacher.modality}s.")
    return teacher


def _ensure_features(
    teacher: Teacher, shards: tuple[Shard, ...], layout: Layout, parameters: ExtractParameters, progress: Progress
) -> tuple[TeacherFeatures, dict[str, str], int]:
    """Make the parts that are missing, stale or damaged; return the entry, what was made and why, and its rows."""
    faults = {}
    for shard in shards:
        origin = PartOrigin(teacher_fingerprint=teacher.fingerprint, shard_sha256=shard.sha256)
        path = layout.features(teacher.slug, shard.name)
        if fault := part_fault(path, shard.rows(teacher.modality), teacher.dim, origin):
            path.unlink(missing_ok=True)
            faults[shard.name] = fault
    names = {shard.name for shard in shards}
    for path in (layout.root / "features" / teacher.slug).glob("*.h5"):
        if path.stem not in names:
            path.unlink()
    pending = [shard for shard in shards if shard.name in faults]
    if pending:
        extract_features(teacher, shards, pending, layout, parameters.extract, progress)
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


def _ensure_indices(
    slug: str, entry: TeacherFeatures, shards: tuple[Shard, ...], layout: Layout
) -> tuple[dict[str, str], dict[str, str]]:
    features = Features(layout, slug, shards, entry)
    digests, made = {}, {}
    for split in dict.fromkeys(shard.split for shard in shards):
        of_split = tuple(shard for shard in shards if shard.split == split)
        digests[split], built = ensure_index(features, split, of_split, entry.parts, layout)
        if built:
            made[f"indices/{slug}/{split}"] = "missing, stale or damaged"
    return digests, made


def summary(extracted: Extracted, store: Path) -> Table:
    """Return the closing table: what is in the store, what was left out and why, what was made, how fast."""
    manifest, quarantined = extracted.manifest, extracted.ingested.quarantined
    table = Table(title=f"store {store}", show_header=False, title_justify="left")
    for split in manifest.splits:
        of_split = [shard for shard in manifest.shards if shard.split == split]
        samples, captions = sum(s.samples for s in of_split), sum(s.captions for s in of_split)
        table.add_row(split, f"{samples:,} samples, {captions:,} captions, {len(of_split)} shards")
    for slug, teacher in manifest.teachers.items():
        left_out = f", {teacher.invalid:,} rows failed" if teacher.invalid else ""
        table.add_row(f"{teacher.modality} features", f"{slug}: {teacher.dim}-d, {teacher.precision}{left_out}")
    reasons = Counter(entry.reason for entry in quarantined)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    table.add_row("left out", f"{listed} (see quarantine.jsonl)" if listed else "none")
    repaired = [f"{name} ({why})" for name, why in extracted.made.items() if why.startswith(("stale", "damaged"))]
    if repaired:
        table.add_row("made again", "\n".join(repaired[:10] + ["…"] * (len(repaired) > 10)))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    table.add_row("bytes", f"{size / 2**20:,.1f} MiB")
    if extracted.made:
        rate = extracted.rows / extracted.seconds
        table.add_row("time", f"{extracted.seconds:.1f} s, {extracted.rows:,} rows encoded, {rate:,.0f} rows/s")
    else:
        table.add_row(
            "time", f"{extracted.seconds:.1f} s; nothing to do: the store was complete, and every checksum holds"
        )
    return table
