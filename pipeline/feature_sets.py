"""Bringing a store's features up to date: what is whole is kept, what is missing, stale or damaged is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rich.progress import Progress

from pipeline.encode import Engine, extract_features
from pipeline.imports import FeatureImport, GivenImport
from pipeline.indices import ensure_index
from pipeline.unplanned import check_replaced_parts, unplanned_indices, unplanned_parts
from stores import Features, Manifest, Shard, SourceError
from stores.console import console
from stores.digests import file_digest
from stores.features import PartFault, PartOrigin, is_part, part_fault, read_part, write_part
from stores.layout import Layout
from stores.manifest import FeatureSet, read_manifest, write_manifest
from stores.modality import Level
from stores.parameters import Extract


@dataclass(kw_only=True)
class FeatureSets:
    """The features and indices of a store while a run brings them up to date."""

    layout: Layout
    settings: Extract
    progress: Progress
    shards: tuple[Shard, ...]
    classes: tuple[Shard, ...]
    """The one shard of classes, where there are some."""
    before: Manifest | None
    """What the store held when it was last whole."""
    features: dict[str, FeatureSet] = field(default_factory=dict)
    indices: dict[str, dict[str, str]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    """Every file made, and why."""
    encoded: int = 0
    """Rows that teachers encoded."""

    def keep(self, requested: set[str]) -> None:
        """Keep features of earlier runs that are whole; of the others, keep what is, for a later run."""
        for slug, held in self.before.features.items() if self.before else ():
            if slug in requested:
                continue
            faults = self._faults(slug, held.fingerprint, held.level, held.shape)
            if not faults:
                self._add(slug, held)
                continue
            self._unlink_damaged(slug, faults)
            self._withdraw(slug)
            console.print(
                f"Set aside: of the features of {slug}, {len(faults):,} of {len(self._of(held.level)):,} parts must be "
                f"made again ({next(iter(faults.values()))}). Extract with {held.spec} to have it back; the others are "
                f"kept.",
                style="yellow",
            )

    def extract(self, engine: Engine) -> None:
        """Encode what is missing of a teacher's features."""
        teacher = engine.card
        faults = self._faults(teacher.slug, teacher.fingerprint, teacher.level, teacher.shape)
        pending = self._pending(teacher.slug, faults)
        if pending:
            extract_features(engine, self.shards, pending, self.layout, self.settings, self.progress)
        self.encoded += sum(shard.rows(teacher.level) for shard in pending)
        made = teacher.feature_set(self._digests(teacher.slug, self.shards))
        self._add(teacher.slug, self._counted(teacher.slug, made))

    def import_(self, wanted: FeatureImport | GivenImport) -> None:
        """Copy what is missing of features that the user or the data set has."""
        name, level = wanted.name, wanted.level
        held = self.before.features.get(name) if self.before else None
        same = held is not None and held.fingerprint == wanted.fingerprint
        shape = held.shape if held and same else wanted.shape or self._shape_of_parts(wanted)
        shards = self._of(level)
        faults = (
            self._faults(name, wanted.fingerprint, level, shape, in_order=wanted.in_order)
            if shape
            else dict.fromkeys((shard.name for shard in shards), "missing" if held is None else "stale: other file")
        )
        pending = self._pending(name, faults)
        if pending or not shape:
            total = sum(shard.rows(level) for shard in pending)
            task = self.progress.add_task(f"import · {name}", total=total, note="")
            try:
                for shard, features, valid in wanted.parts(shards, pending, self.layout):
                    origin = self._origin(shard, wanted.fingerprint, level, in_order=wanted.in_order)
                    write_part(self.layout.features(name, shard.name), features, valid, origin)
                    shape = features.shape[1:]
                    self.progress.advance(task, len(features))
            except SourceError:
                for shard in pending:  # those before the fault are of a file that will be another one
                    self.layout.features(name, shard.name).unlink(missing_ok=True)
                raise
        made = FeatureSet(
            spec=wanted.spec,
            modality=name,
            level=level,
            shape=shape,
            unit=wanted.unit,
            precision=None,
            fingerprint=wanted.fingerprint,
            parts=self._digests(name, shards),
            invalid=0,
        )
        self._add(name, self._counted(name, made))

    def _of(self, level: Level) -> tuple[Shard, ...]:
        return self.classes if level == "class" else self.shards

    def _origin(self, shard: Shard, fingerprint: str, level: Level, *, in_order: bool) -> PartOrigin:
        start = next(other.first_row(level) for other in self._of(level) if other.split == shard.split)
        first = shard.first_row(level) - start if in_order else None
        return PartOrigin(teacher_fingerprint=fingerprint, shard_sha256=shard.sha256, first_row=first)

    def _shape_of_parts(self, wanted: FeatureImport | GivenImport) -> tuple[int, ...]:
        """Return the shape of a row of parts that a stopped run left; none where there are none."""
        for shard in self._of(wanted.level):
            origin = self._origin(shard, wanted.fingerprint, wanted.level, in_order=wanted.in_order)
            try:
                return read_part(self.layout.features(wanted.name, shard.name), None, origin)[0].shape[1:]
            except PartFault:
                continue
        return ()

    def _faults(
        self, slug: str, fingerprint: str, level: Level, shape: tuple[int, ...], *, in_order: bool = False
    ) -> dict[str, str]:
        """Return which shards' parts must be made (again), and why."""
        faults = {}
        for shard in self._of(level):
            origin = self._origin(shard, fingerprint, level, in_order=in_order)
            path = self.layout.features(slug, shard.name)
            if fault := part_fault(path, (shard.rows(level), *shape), origin):
                faults[shard.name] = fault
        return faults

    def _pending(self, slug: str, faults: Mapping[str, str]) -> list[Shard]:
        """Make ready for the parts that must be made, and return their shards."""
        shards = (*self.shards, *self.classes)
        if self.before is None or slug not in self.before.features:
            check_replaced_parts(slug, faults, self.layout)
        unplanned = unplanned_parts(slug, {shard.name for shard in shards}, self.layout)
        # What is stale but whole stays until its successor takes its place: a run that is stopped has lost nothing.
        # What is damaged goes while the manifest still shows that it is ours.
        for path in (self.layout.features(slug, name) for name in faults):
            if not is_part(path):
                path.unlink(missing_ok=True)
        if faults or unplanned:
            self._unlink_damaged(slug, faults)
            self._withdraw(slug)
        for path in unplanned:
            path.unlink(missing_ok=True)
        self.made |= {f"features/{slug}/{name}": why for name, why in faults.items()}
        return [shard for shard in shards if shard.name in faults]

    def _unlink_damaged(self, slug: str, faults: Mapping[str, str]) -> None:
        """Remove what serves no later run, as long as the manifest names it: then it is known to be ours."""
        for path in (self.layout.features(slug, name) for name in faults):
            if not is_part(path):
                path.unlink(missing_ok=True)

    def _digests(self, slug: str, shards: tuple[Shard, ...]) -> dict[str, str]:
        return {shard.name: file_digest(self.layout.features(slug, shard.name)) for shard in shards}

    def _counted(self, slug: str, made: FeatureSet) -> FeatureSet:
        absent = ~Features(self.layout, slug, self._of(made.level), made).valid
        return replace(made, invalid=int(absent.sum()))

    def _add(self, slug: str, entry: FeatureSet) -> None:
        """Take in features that are whole, and bring their indices up to date."""
        self.features[slug] = entry
        recorded = self.before.indices.get(slug, {}) if self.before else {}
        splits = {shard.split for shard in self.shards} if entry.indexed else set()
        for path in unplanned_indices(slug, splits, recorded, self.layout):
            path.unlink(missing_ok=True)
        if not splits:
            return
        features, digests = Features(self.layout, slug, self.shards, entry), {}
        for split in dict.fromkeys(shard.split for shard in self.shards):
            own = tuple(shard for shard in self.shards if shard.split == split)
            digests[split], why = ensure_index(
                features, split, own, entry.parts, self.layout, self.settings, self.progress
            )
            if why:
                self.made[f"indices/{slug}/{split}"] = why
        self.indices[slug] = digests

    def _withdraw(self, slug: str) -> None:
        """Take features out of the manifest before their parts change, so that no reader finds old and new mixed."""
        if not self.layout.manifest.exists():
            return
        held = read_manifest(self.layout)
        features = {name: entry for name, entry in held.features.items() if name != slug}
        indices = {name: entry for name, entry in held.indices.items() if name != slug}
        write_manifest(replace(held, features=features, indices=indices), self.layout)
