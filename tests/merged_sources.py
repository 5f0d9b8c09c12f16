"""A source as ingest reads it, with the records of each picture as one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.merge import Merge, merged
from pipeline.sources import Source
from stores.console import progress_bar


@contextmanager
def merged_source(source: Source, folder: Path, merge: Merge = "path") -> Iterator[Source]:
    """Yield the merged source; its file lies in `folder`."""
    with ThreadPoolExecutor(2) as readers, merged(source, merge, folder, readers, progress_bar()) as once:
        yield once
