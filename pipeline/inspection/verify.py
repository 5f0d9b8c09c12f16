"""cusa-store verify: every claim that a store makes, held against its files. Nothing is changed.

The checks run one after another, each over one kind of thing (files, shards, parts …) and one thing at a time, so that
memory does not grow with the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from pipeline.inspection.checks import Check, Fault
from pipeline.inspection.dry_run import DryRun
from pipeline.pictures import shared_lines
from stores import Store, StoreError
from stores.console import Listing, cell, progress_bar
from stores.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was checked, what is damaged, and what only deserves a remark."""

    store: Path
    checks: tuple[Check, ...]
    remarks: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not any(check.faults for check in self.checks)


def verify(path: Path, sample: int | None = None, weights: Mapping[str, str | None] | None = None) -> Report:
    """Check the store at `path`; deeply if `sample` says how many rows of each teacher are encoded again.

    `weights` are checkpoints of the "image" and the "text" teacher, where they are not at the recorded place.

    Raises:
        StoreError: there is no finished store.
        TeacherError: a deep check's teacher cannot be had.
    """
    try:
        store = Store.open(path)
    except StoreError as error:
        if not Layout(path).manifest.exists():
            raise
        broken = Check("manifest", (), lambda _: (), counted=1, faults=[Fault("manifest.json", error.message)])
        return Report(store=path, checks=(broken,), remarks=())
    remarks: list[str] = []
    run = DryRun(store)
    checks = run.all
    if sample is not None:
        from pipeline.inspection.deep import deep_checks  # here, since it alone needs teachers: seconds to load

        checks += deep_checks(store, sample, weights or {}, run.tables, remarks)
    with progress_bar() as progress:
        for check in checks:
            check.run(progress)
    remarks += shared_lines(store.manifest)
    return Report(store=path, checks=tuple(checks), remarks=(*remarks, *run.strays()))


def render(report: Report) -> list[RenderableType]:
    """Return the report as tables: the checks with their counts, each fault, each remark, and a last word."""
    checks = Listing(title=f"store {report.store}", title_justify="left")
    for column in ("check", "checked", "damaged"):
        checks.add_column(column, justify="left" if column == "check" else "right")
    checks.add_column("")
    for check in report.checks:
        checks.add_row(check.name, f"{check.counted:,}", f"{len(check.faults):,}", cell(check.note))
    shown: list[RenderableType] = [checks]
    faults = [fault for check in report.checks for fault in check.faults]
    shown += [cell(f"Damaged: {fault.file}: {fault.found.rstrip('.')}. {fault.remedy}", 1000) for fault in faults]
    shown += [cell(f"Remark: {remark}", 400) for remark in report.remarks]
    what = "1 thing is" if len(faults) == 1 else f"{len(faults):,} things are"
    shown.append(cell(f"{what} damaged." if faults else "Everything holds."))
    return shown
