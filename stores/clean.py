"""A clean column: how likely each pair of a split is right, in a file of its own, made by teachers or by a training.

It names the data and the pairing that it was made of; with others it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores import tables
from stores.errors import DamagedStoreError, StoreError
from stores.store import Store

FILE_NAME: Final = "clean.arrow"
_COLUMNS: Final = pa.schema([("caption", pa.int64()), ("probability", pa.float32())])
"""One row a caption whose pair was judged, in the order of the rows."""


def write_clean(path: Path, store: Store, captions: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    """Write how likely the pairs of `captions` (n,), rows in their order, are right: `probabilities` (n,)."""
    columns = [pa.array(captions), pa.array(probabilities.astype(np.float32))]
    schema = _schema(store)
    with tables.table_writer(path, schema) as table:
        table.write_batch(pa.record_batch(columns, schema=schema))


ADVICE: Final = "Name the clean.arrow of cusa-store suspects or of another run."


def read_clean(path: Path, store: Store) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the captions' rows (n,), ascending, and how likely their pairs are right (n,).

    Raises:
        StoreError: the file is absent, no clean column, or of other data or another pairing.
    """
    try:
        table = tables.read_table(path, _COLUMNS)
    except DamagedStoreError as error:
        expected = "a clean column (train.clean, data.clean)"
        raise StoreError(error.problem, path=path, found=error.found, expected=expected, advice=ADVICE) from None
    if table.schema.metadata != _schema(store).metadata:
        advice = f"Make it again of {store.root}."
        raise StoreError("is of other data", path=path, expected="the store's data and pairing", advice=advice)
    captions, probabilities = table["caption"].to_numpy(), table["probability"].to_numpy().astype(np.float64)
    total = sum(shard.captions for shard in store.manifest.shards)
    ordered = len(captions) == 0 or (captions[0] >= 0 and captions[-1] < total and (np.diff(captions) > 0).all())
    if not ordered or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise StoreError("no clean column", path=path, expected="ascending rows, and probabilities", advice=ADVICE)
    return captions, probabilities


def is_clean_column(path: Path) -> bool:
    """Tell whether a file is a clean column."""
    try:
        tables.open_batches(path, _COLUMNS)
    except DamagedStoreError:
        return False
    return True


def _schema(store: Store) -> pa.Schema:
    manifest = store.manifest
    pairing = manifest.files.get("pairing.arrow", "")
    return _COLUMNS.with_metadata({"data": manifest.source_fingerprint, "pairing": pairing})
