"""The store's Arrow tables: their schemas, an atomic writer, and readers that map the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from stores.atomic import atomic_path
from stores.errors import DamagedStoreError
from stores.ownership import check_plain

_NAMES = pa.dictionary(pa.int32(), pa.string())

SAMPLES: Final = pa.schema(
    [
        ("key", pa.string()),
        ("split", _NAMES),
        ("shard", _NAMES),
        ("source_id", pa.string()),
        ("image_sha256", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_first", pa.int64()),
        ("caption_count", pa.int32()),
        ("label", pa.string()),
    ]
)
"""One row a sample. The image's bytes lie at `image_offset` of the shard's tar, `image_bytes` long."""

_MAY_BE_NULL: Final = ("image_sha256", "width", "height", "label")
"""Of a sample without an image, or without a label."""

CAPTIONS: Final = pa.schema([("text", pa.large_string()), ("sample", pa.int64())])
"""One row a caption."""

PAIRING: Final = pa.schema([("sample", pa.int64())])
"""One row a caption: the sample that it is paired with in training, where that is not its own; a batch a shard."""

CLASSES: Final = pa.schema([("name", pa.string())])
"""One row a class: what samples have as label, sorted."""

RELEVANCE: Final = pa.schema([("caption", pa.int64()), ("sample", pa.int64())])
"""Every caption row and sample row that truly belong together, sorted; whole splits or none."""

CAPTION_PAIRS: Final = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("similarity", pa.float64())])
"""Graded similarity of pairs of caption rows."""

SCHEMAS: Final = {
    "samples.arrow": SAMPLES,
    "captions.arrow": CAPTIONS,
    "pairing.arrow": PAIRING,
    "classes.arrow": CLASSES,
    "relevance.arrow": RELEVANCE,
    "caption_pairs.arrow": CAPTION_PAIRS,
}
"""By the tables' files."""


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """Yield a writer of an Arrow IPC file, batch by batch; the file appears when the block ends well."""
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        yield writer


def open_batches(path: Path, schema: pa.Schema) -> pa.ipc.RecordBatchFileReader:
    """Map an Arrow IPC file, to be read batch by batch; samples.arrow and captions.arrow hold one a shard.

    Raises:
        DamagedStoreError: the file is absent, damaged, or has other columns.
    """
    check_plain(path)
    try:
        reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
    if not reader.schema.equals(schema):
        raise DamagedStoreError(path=path, where="columns", found=reader.schema.names, expected=schema.names)
    return reader


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Map a whole Arrow IPC file; nothing is read before it is touched.

    Raises:
        DamagedStoreError: the file is absent, damaged, has other columns, or lacks values.
    """
    reader = open_batches(path, schema)
    try:
        table = reader.read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
    check_values(table, path)
    return table


def check_values(rows: pa.Table | pa.RecordBatch, path: Path) -> None:
    """See that rows of the table at `path` have a value wherever readers take one for granted.

    Raises:
        DamagedStoreError: there is a null.
    """
    lacking = [name for name in rows.schema.names if name not in _MAY_BE_NULL and rows[name].null_count]
    if lacking:
        raise DamagedStoreError(path=path, where=f"column {lacking[0]}", found="null", expected="a value in each row")
