"""cusa-store info: what is in a store, by its manifest, its tables' heads and its indices' cards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.pictures import picture_lines
from stores import ExtractParameters, Manifest, Store, tables
from stores.console import Listing, cell
from stores.errors import DamagedStoreError
from stores.json_objects import parsed_object
from stores.layout import Layout
from stores.ownership import json_object
from stores.parameters import as_dict

TRUTH = ("relevance.arrow", "caption_pairs.arrow")


def describe(path: Path) -> dict[str, Any]:
    """Return what the store at `path` holds, as plain values.

    Raises:
        StoreError: there is no finished store, or what is read of it is damaged.
    """
    store, layout = Store.open(path), Layout(path)
    manifest = store.manifest
    return {
        "store": str(path),
        "format_version": manifest.format_version,
        "bytes": sum(_size(found) for found in path.rglob("*")),
        "source": manifest.source,
        "source_fingerprint": manifest.source_fingerprint,
        "splits": [_split(manifest, split) for split in manifest.splits],
        "features": [_features(manifest, slug, layout) for slug in manifest.features],
        "indices": [_index(slug, split, layout) for slug, splits in manifest.indices.items() for split in splits],
        "tables": [_table(layout.root / name) for name in manifest.files],
        "truth": [name.removesuffix(".arrow") for name in TRUTH if name in manifest.files],
        "quarantined": _quarantined(layout.quarantine),
        "pictures": picture_lines(manifest),
        "parameters": manifest.parameters,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _split(manifest: Manifest, split: str) -> dict[str, Any]:
    shards = [shard for shard in manifest.shards if shard.split == split]
    return {
        "split": split,
        "samples": manifest.rows(split, "sample"),
        "captions": manifest.rows(split, "caption"),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def _features(manifest: Manifest, slug: str, layout: Layout) -> dict[str, Any]:
    entry = manifest.features[slug]
    return {
        "features": slug,
        "from": entry.spec,
        "modality": entry.modality,
        "level": entry.level,
        "shape": list(entry.shape),
        "unit": entry.unit,
        "precision": entry.precision,
        "rows": sum(shard.rows(entry.level) for shard in manifest.shards_of(entry.level)),
        "absent": entry.invalid,
        "bytes": sum(_size(layout.features(slug, name)) for name in entry.parts),
        "fingerprint": entry.fingerprint,
    }


def _index(slug: str, split: str, layout: Layout) -> dict[str, Any]:
    card = json_object(layout.index_card(slug, split))
    return {
        "teacher": slug,
        "split": split,
        "kind": card.get("kind"),
        "rows": card.get("rows"),
        "recall": {name: value for name, value in card.items() if "recall" in name},
        "bytes": _size(layout.index(slug, split)),
    }


def _table(path: Path) -> dict[str, Any]:
    schema = tables.SCHEMAS.get(path.name)
    rows = tables.read_table(path, schema).num_rows if schema else None
    return {"table": path.name, "rows": rows, "bytes": _size(path)}


def _quarantined(path: Path) -> dict[str, dict[str, int]]:
    """Count what was rejected, by reason, reading line by line."""
    samples: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                entry = parsed_object(line)
                (samples if entry.get("caption") is None else captions)[str(entry["reason"])] += 1
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
    return {"samples": dict(samples.most_common()), "captions": dict(captions.most_common())}


_COLUMNS: Final = {
    "splits": ("split", "samples", "captions", "shards", "size"),
    "features": ("name", "from", "modality", "level", "shape", "values", "rows", "absent", "size", "fingerprint"),
    "indices": ("teacher", "split", "kind", "rows", "recall@10", "size"),
    "tables": ("table", "rows", "size"),
}
_NUMBERS: Final = ("samples", "captions", "shards", "rows", "absent", "size")


def render(found: dict[str, Any]) -> list[RenderableType]:
    """Return what `describe` found as tables."""
    shown = [_overview(found)]
    for title, columns in _COLUMNS.items():
        table = Listing(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="right" if column in _NUMBERS else "left")
        for held in found[title]:
            values = _readable(held)
            cells = (values[column] for column in columns)
            table.add_row(*(f"{v:,}" if isinstance(v, int) else cell("–" if v is None else str(v)) for v in cells))
        shown.append(table)
    return [Group(table, "") for table in shown]


def _readable(held: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table with what is shown in place of some of its values."""
    values = {**held, "size": _mib(held["bytes"])}
    if "features" in held:
        values["name"], values["shape"] = held["features"], " × ".join(map(str, held["shape"]))
        values["values"] = f"{'unit vectors' if held['unit'] else 'as given'}, {held['precision'] or 'imported'}"
        values["fingerprint"] = held["fingerprint"][:12]
    if "recall" in held:
        recall = held["recall"].get("recall_at_10")
        measured = f"{recall:.3f}" if isinstance(recall, int | float) else "–"
        values["recall@10"] = "exact" if held["kind"] == "Flat" else measured
    return values


def _overview(found: dict[str, Any]) -> Table:
    table = Listing(title=f"store {found['store']}", show_header=False, title_justify="left")
    quarantined = found["quarantined"]
    files = {f"files of {split}": _files(value) for split, value in found["source"].get("files", {}).items()}
    facts = {name: value for name, value in found["source"].items() if name != "files"}
    for name, value in _flat(facts | files).items():
        table.add_row(cell(f"source: {name}"), cell(str(value), 400))
    table.add_row("source fingerprint", found["source_fingerprint"][:12])
    table.add_row("size", _mib(found["bytes"]))
    table.add_row("truth", ", ".join(found["truth"]) or "none: the source knows only its own pairs")
    for what in ("samples", "captions"):
        table.add_row(f"{what} left out", cell(_facts(quarantined[what]) or "none"))
    for said in found["pictures"]:
        table.add_row("pictures", cell(said, 400))
    changed = _changed(found["parameters"])
    table.add_row("parameters", "the defaults, but for:" if changed else "the defaults")
    for name, value in changed.items():
        table.add_row(cell(name), cell("null" if value is None else str(value), 400))
    return table


def _files(found: dict[str, Any] | str) -> str:
    """Say what a source's description tells of a split's files: how many there are, or the one's SHA-256."""
    if isinstance(found, str):
        return f"1, sha256 {found[:12]}…"
    return f"{found['count']:,}, first {found['first']}" if found["count"] > 1 else f"{found['first']}"


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat


def _changed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not the defaults."""
    usual = _flat(as_dict(ExtractParameters()))
    return {name: value for name, value in _flat(parameters).items() if name not in usual or usual[name] != value}


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _facts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:,}" if type(value) is int else f"{name} {value}" for name, value in values.items())
