"""The captions of a store, read from the mapped table shard by shard: no column of it is ever whole in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores import Store
from stores.errors import DamagedStoreError
from stores.layout import Layout
from stores.tables import CAPTIONS, open_batches


class Captions:
    """Texts by global row, and which samples a shard's captions belong to.

    The table is mapped on first touch, in each process for itself; a pickle carries its path alone.
    """

    def __init__(self, store: Store) -> None:
        self._path = Layout(store.root).captions
        self._shards = store.manifest.shards
        self._bounds = np.cumsum([0, *(shard.captions for shard in self._shards)])
        self._reader: pa.ipc.RecordBatchFileReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def text(self, row: int) -> str:
        """Return the caption of a global row."""
        number = int(np.searchsorted(self._bounds, row, side="right")) - 1
        text: str = self._batch(number)["text"][row - int(self._bounds[number])].as_py()
        return text

    def owners(self, number: int) -> NDArray[np.int64]:
        """Return the sample rows of the captions of the manifest's shard `number`: (captions,).

        Raises:
            DamagedStoreError: the table is damaged.
        """
        shard = self._shards[number]
        owners: NDArray[np.int64] = self._batch(number)["sample"].to_numpy()
        if len(owners) and not shard.first_sample <= owners.min() <= owners.max() < shard.first_sample + shard.samples:
            raise DamagedStoreError("captions of samples of other shards", path=self._path, where=f"shard {shard.name}")
        return owners

    def _batch(self, number: int) -> pa.RecordBatch:
        if self._reader is None:
            self._reader = open_batches(self._path, CAPTIONS)
        if self._reader.num_record_batches != len(self._shards):
            found, expected = self._reader.num_record_batches, len(self._shards)
            raise DamagedStoreError("batches of rows", path=self._path, found=found, expected=expected)
        try:
            batch = self._reader.get_batch(number)
        except (OSError, pa.ArrowInvalid) as error:
            raise DamagedStoreError(f"cannot be read ({error})", path=self._path) from None
        shard = self._shards[number]
        if (found := batch.num_rows) != shard.captions:
            where, expected = f"shard {shard.name}", shard.captions
            raise DamagedStoreError("captions", path=self._path, where=where, found=found, expected=expected)
        return batch
