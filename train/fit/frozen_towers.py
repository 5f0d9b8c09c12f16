"""What frozen towers make of a store's items, computed once: a training reads it as it reads a teacher's features.

A tower that learns nothing and sees every item as it is gives the same outputs in every epoch and every run. They lie
beside the store, in `<store>.towers/<modality>-<digest>/`: `outputs.npy`, a row for each row of the store, and
`outputs.json`, which says how far each split is. Deleting them costs the time to compute them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from models.aligned import AlignedModel
from models.batch_loader import item_batches
from models.encoded import tensors_of
from models.inputs import Input, Stored, Tokens
from models.loading import described, tensors_digest, weights_digest
from models.students import HalvedStudent, Parts
from stores import Store, TrainingError, TrainParameters
from stores.atomic import atomic_path, write_json
from stores.console import console, progress_bar
from stores.digests import value_digest
from stores.images import DECODING
from stores.modality import Level
from stores.ownership import json_object
from train.data.mixture import Mixture
from train.evaluation.embed import process_share
from train.fit.processes import precision_of
from train.fit.stops import Stop

AT_ONCE: Final = 8192
"""Rows after which it is written down how far the outputs are."""
PROBE: Final = 8
"""Rows of a split, spread over it, that are computed again, to see that outputs on disk are whole, and of this code."""
TEXTS: Final = 5000
"""Texts of a split, spread over it, by whose tokens a tokenizer is known, which may be any function: a small split's
all, of a large one a second's worth, which a change of one text in a thousand escapes in 7 cases of 1,000."""
BATCH: Final = 1000
"""Texts that are tokenised at once."""
AGREES: Final = 0.999
"""Cosine of a row on disk with the same row computed again, which rounds otherwise in another batch."""

Splits = Sequence[tuple[Store, Sequence[str]]]


class OutputTable:
    """A tower's outputs by a store's global rows, in one mapped file: (rows, …) float32. A pickle carries the path."""

    def __init__(self, path: Path, level: Level) -> None:
        self._path, self.level = path, level

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "level": self.level}

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = open_memmap(self._path, "r+")
        return rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return self._rows.shape[1:]

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Of a number."""
        return self._rows.dtype

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) bool: every item has outputs."""
        return np.ones(len(self._rows), bool)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the outputs of global rows (n,), in their order: (n, …)."""
        return self._rows[rows]

    def write(self, rows: NDArray[np.int64], outputs: NDArray[np.float32]) -> None:
        """Set the outputs of global rows (n,)."""
        self._rows[rows] = outputs
        self._rows.flush()  # type: ignore[attr-defined] # of a memory map


class StoredOutputs(Stored):
    """Outputs of a frozen tower, read by row in place of the items: (n, …) float32."""

    def __init__(self, modality: str, level: Level, tables: Mapping[Path, OutputTable]) -> None:
        """Read those of each store from its table, by the store's root."""
        super().__init__(f"outputs of the {modality} tower", level)
        self._tables = dict(tables)

    def features(self, store: Store) -> OutputTable:
        return self._tables[store.root]


def read_frozen_outputs(
    model: AlignedModel, parameters: TrainParameters, splits: Splits, accelerator: Accelerator, stop: Stop
) -> None:
    """Let a model, on its device, read what its frozen towers make of the splits of each store; first compute it.

    That is done where a student tells the halves of its towers, and training does not augment what the tower sees.

    Raises:
        TrainingError: there is no room for the outputs beside a store.
        Stopped: a stop was asked for; what is computed is kept.
    """
    student = model.interface
    if not isinstance(student, HalvedStudent):
        return
    for modality in parameters.student.freeze:
        given = student.inputs[modality]
        if modality in student.halves and not (parameters.train.augment and given.augmented):
            tower = _FrozenTower(student, modality, model.student.towers[modality], parameters, accelerator, stop)
            tables = {store.root: tower.table(store, names) for store, names in splits}
            student.read_outputs(modality, StoredOutputs(modality, given.level, tables))


class _FrozenTower:
    def __init__(
        self,
        student: HalvedStudent,
        modality: str,
        parts: Parts,
        parameters: TrainParameters,
        accelerator: Accelerator,
        stop: Stop,
    ) -> None:
        self._student, self._modality, self._parameters = student, modality, parameters
        self._given: Input = student.inputs[modality]
        self._accelerator, self._stop = accelerator, stop
        modules = [part if isinstance(part, torch.nn.Module) else torch.nn.ParameterList([part]) for part in parts]
        computes = [(weights_digest(module), described(module)) for module in modules]
        self._identity = [parameters.student.model, computes, described(self._given)]

    def table(self, store: Store, splits: Sequence[str]) -> OutputTable:
        """Return the tower's outputs of some splits of a store."""
        precision, source = precision_of(self._accelerator), store.manifest.source_fingerprint
        processes = self._stop.processes
        seen = processes.once(lambda: tensors_digest(self._seen(store)))
        digest = value_digest([*self._identity, precision, source, DECODING, seen])
        folder = store.root.with_name(f"{store.root.name}.towers") / f"{self._modality}-{digest[:16]}"
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            processes.alone(lambda: self._locked(lock))
            return self._filled(store, splits, folder)
        except OSError as error:
            advice = f"Make room, or leave {self._modality} out of student.freeze."
            fault = f"cannot hold what the frozen tower makes of the items ({error})"
            raise TrainingError(fault, path=folder, advice=advice) from None
        finally:
            lock.release()

    def _seen(self, store: Store) -> Iterator[tuple[str, Tensor]]:
        """Yield, by split, what the input makes of all texts or many, or of some items of another kind."""
        given, modality = self._given, self._modality
        for split in store.manifest.splits:
            items = Mixture([store], split, {modality: given})
            if not isinstance(given, Tokens):
                rows = _spread(store.rows(split, given.level), PROBE)
                yield from ((split, tensor) for tensor in tensors_of(given.batch(items, rows)))
                continue
            texts = [items.text(int(row)) for row in _spread(store.rows(split, given.level), TEXTS)]
            for start in range(0, len(texts), BATCH):
                yield from ((split, tokens) for tokens in given.tokens(texts[start : start + BATCH]))

    def _locked(self, lock: FileLock) -> None:
        """Wait for another run that computes the same outputs."""
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                self._stop.check_alone()

    def _filled(self, store: Store, splits: Sequence[str], folder: Path) -> OutputTable:
        path, state, level = folder / "outputs.npy", folder / "outputs.json", self._given.level
        processes = self._stop.processes
        done: dict[str, int] = processes.once(lambda: json_object(state).get("rows", {}) if path.is_file() else {})
        # Of what is done, or of the first split where nothing is: that tells the shape of a row.
        probed = {split: _spread(store.rows(split, level)[: done[split]], PROBE) for split in splits if done.get(split)}
        probed = probed or {splits[0]: store.rows(splits[0], level)[:1]}
        probe = np.concatenate([self._computed(store, split, rows) for split, rows in probed.items()])
        table = OutputTable(path, level)
        if done and not processes.once(lambda: _agrees(path, np.concatenate([*probed.values()]), probe)):
            console.print(f"{folder} is not what this tower makes of the items; it is computed anew.", style="yellow")
            table, done = OutputTable(path, level), {}
        if not done:
            count = sum(shard.rows(level) for shard in store.manifest.shards)
            processes.alone(lambda: _begin(path, (count, *probe.shape[1:])))
        for split in splits:
            self._fill(table, store, split, done, state)
        return table

    def _fill(self, table: OutputTable, store: Store, split: str, done: dict[str, int], state: Path) -> None:
        """Compute the rows of a split that the table lacks, each process its share."""
        rows, first = store.rows(split, table.level), done.get(split, 0)
        if first == len(rows):
            return
        with progress_bar() as bar:
            task = bar.add_task(f"frozen {self._modality} tower, {split}", total=len(rows), completed=first, note="")
            for start in range(first, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                mine = process_share(some, self._accelerator)
                table.write(mine, self._computed(store, split, mine))
                done[split] = start + len(some)
                self._stop.processes.any(False)  # all have written
                self._stop.processes.alone(lambda: write_json(state, {"rows": done}))
                bar.update(task, completed=done[split])

    def _computed(self, store: Store, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the outputs of rows: (n, …)."""
        device, settings = self._accelerator.device, self._parameters
        items = Mixture([store], split, {self._modality: self._given})
        sizes = settings.eval.batch_size, settings.train.workers
        found: list[Any] = []
        with torch.inference_mode(), self._accelerator.autocast():
            for batch in item_batches(items, self._given, rows, *sizes, device):
                found.append(self._student.frozen_half(self._modality, batch).float().cpu().numpy())
                self._stop.check()
        return np.concatenate(found)


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return so many of the rows, or all, the first and the last among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def _agrees(path: Path, rows: NDArray[np.int64], probe: NDArray[np.float32]) -> bool:
    try:  # read-only: a file that was cut would be filled up with zeros
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    if whole.shape[1:] != probe.shape[1:] or len(whole) <= rows.max():
        return False
    stored = whole[rows]
    one, other = (torch.from_numpy(array.reshape(len(array), -1)) for array in (stored, probe))
    return bool((torch.cosine_similarity(one, other) > AGREES).all())


def _begin(path: Path, shape: tuple[int, ...]) -> None:
    """Make room for the outputs; whoever reads earlier ones goes on reading them."""
    with atomic_path(path) as temporary:
        open_memmap(temporary, "w+", np.float32, shape)
