"""What a run of stage 1 says at its end."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from pipeline.extract import Extracted
from pipeline.pictures import picture_lines
from pipeline.tally import lost_captions
from stores.console import Listing


def summary(extracted: Extracted, store: Path) -> Table:
    """Return the closing table: what is in the store, what was left out and why, what was made, how fast."""
    manifest, rejected, examples = extracted.manifest, extracted.ingested.rejected, extracted.ingested.examples
    table = Listing(title=f"store {store}", show_header=False, title_justify="left")
    for split in manifest.splits:
        samples, captions = manifest.rows(split, "sample"), manifest.rows(split, "caption")
        shards = sum(shard.split == split for shard in manifest.shards)
        table.add_row(split, f"{samples:,} samples, {captions:,} captions, {shards:,} shard{'s' * (shards != 1)}")
    for slug, entry in manifest.features.items():
        left_out = f", {entry.invalid:,} rows absent" if entry.invalid else ""
        shape = " × ".join(map(str, entry.shape))
        table.add_row(f"{entry.modality} features", f"{slug}: {shape}-d, {entry.precision or 'imported'}{left_out}")
    for said in picture_lines(manifest):
        table.add_row("pictures", said)
    if relabelled := extracted.ingested.relabelled:
        table.add_row("pictures", f"{relabelled:,} samples had several labels; the first is kept")
    reasons = [f"{reason} {count:,}, first {examples[reason]}" for reason, count in rejected.most_common()]
    reasons += [lost] if (lost := lost_captions(extracted.ingested.lost_captions)) else []
    table.add_row("left out", "\n".join([*reasons, "all are listed in quarantine.jsonl"]) if reasons else "none")
    repaired = [
        f"{name} ({why})"
        for name, why in extracted.made.items()
        if extracted.repaired or why.startswith(("stale", "damaged"))
    ]
    if repaired:
        table.add_row("made again", "\n".join(repaired[:10] + ["…"] * (len(repaired) > 10)))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    table.add_row("bytes", f"{size / 2**20:,.1f} MiB")
    if extracted.rows:
        rate = extracted.rows / extracted.seconds
        table.add_row("time", f"{extracted.seconds:.1f} s, {extracted.rows:,} rows encoded, {rate:,.0f} rows/s")
    elif extracted.made:
        table.add_row("time", f"{extracted.seconds:.1f} s, no row encoded")
    else:
        table.add_row(
            "time", f"{extracted.seconds:.1f} s; nothing to do: the store was complete, and every checksum holds"
        )
    return table
