"""Tables written in a moment, opened as data sets, and read through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.sources import Record, Rejected, Source, open_source
from stores.parameters import Columns, Data


def opened(path: Path, data: bytes | str, columns: dict[str, Any] | None = None, **settings: Any) -> Source:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_source(Data(source=str(path), columns=Columns(**columns or {}), **settings))


def read(source: Source) -> list[tuple[str, list[str]]]:
    """Each record's image, or why it is bad, with its captions, or why each is none."""
    return [
        (str(r.image.name), [f"({c.reason})" if isinstance(c, Rejected) else c for c in r.captions])  # type: ignore[attr-defined]
        if isinstance(r, Record)
        else (r.rejected.detail, [])
        for r in source.records("train")
    ]
