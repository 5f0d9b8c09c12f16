"""The captions of a store, read from the mapped table shard by shard: no column of it is ever whole in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores import Store, StoreError
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
            StoreError: the table is damaged.
        """
        shard = self._shards[number]
        owners: NDArray[np.int64] = self._batch(number)["sample"].to_numpy()
        if len(owners) and not shard.first_sample <= owners.min() <= owners.max() < shard.first_sample + shard.samples:
            raise self._damaged(f"gives captions of the shard {shard.name} to samples that are not in it")
        return owners

    def _batch(self, number: int) -> pa.RecordBatch:
        if self._reader is None:
            self._reader = open_batches(self._path, CAPTIONS)
        if self._reader.num_record_batches != len(self._shards):
            raise self._damaged(f"has {self._reader.num_record_batches} batches of rows for {len(self._shards)} shards")
        try:
            batch = self._reader.get_batch(number)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._damaged(f"cannot be read ({error})") from None
        if batch.num_rows != self._shards[number].captions:
            raise self._damaged(
                f"has {batch.num_rows} captions of the shard {self._shards[number].name}, "
                f"where the manifest says {self._shards[number].captions}"
            )
        return batch

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._path} {what}. Run cusa-extract again: it repairs the store.")
