"""Features: one contiguous HDF5 part per shard, gathered by global row through read-only memory maps.

A part holds `features` (rows, …) float16, contiguous, and `valid` (rows,) bool, false where a row is absent (and
zero); its attributes name what it was made from. Its last 32 bytes, which HDF5 does not read, are the SHA-256 of all
before them. `read_part`, by which stores are repaired and verified, holds the file against it before HDF5, which may
crash on a damaged one, sees any of it. `Features` opens parts unchecked, since the check reads them whole.

HDF5 keeps a contiguous dataset at one offset of the file, so a plain memory map of that place serves the rows: about
twenty times as fast as reading through HDF5, and shared by all processes of a machine.
"""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.atomic import atomic_path
from stores.errors import DamagedStoreError, StoreError
from stores.layout import Layout
from stores.manifest import FeatureSet, Shard
from stores.modality import Level
from stores.ownership import check_plain, is_plain
from stores.parameters import Precision

PART_FORMAT: Final = 3
"""2 had another checksum among its attributes, and is read."""
_DIGEST_BYTES: Final = 32


class PartFault(StoreError):
    """A part must be made (again); the message says why in a few words."""


@dataclass(frozen=True, kw_only=True)
class PartOrigin:
    """What a part was made from; a part of another origin is stale."""

    teacher_fingerprint: str
    shard_sha256: str
    first_row: int | None = None
    """Of the shard within its split, where rows are taken by their order: it may change while the shard does not."""


def write_part(
    path: Path,
    features: NDArray[np.float16],
    valid: NDArray[np.bool_],
    origin: PartOrigin,
    batch_size: int = 1,
    precision: str | None = None,
) -> None:
    """Write (rows, …) `features` and (rows,) `valid` as one part, atomically, and how a teacher computed them."""
    with atomic_path(path) as temporary:
        # Assembled in memory and then written: HDF5 itself, on a full disk, ends in faults that nothing can catch.
        whole = io.BytesIO()
        with h5py.File(whole, "w") as file:
            file.create_dataset("features", data=features, track_times=False)
            file.create_dataset("valid", data=valid, track_times=False)
            file.attrs["format"] = PART_FORMAT
            file.attrs["teacher_fingerprint"] = origin.teacher_fingerprint
            file.attrs["shard_sha256"] = origin.shard_sha256
            file.attrs["batch_size"] = batch_size
            if origin.first_row is not None:
                file.attrs["first_row"] = origin.first_row
            if precision is not None:
                file.attrs["precision"] = precision
        with temporary.open("wb") as stream:
            stream.write(whole.getbuffer())
            stream.write(hashlib.sha256(whole.getbuffer()).digest())


def part_fault(path: Path, shape: tuple[int, ...], origin: PartOrigin) -> str | None:
    """Return why the part must be made (again), or None if it is whole and of this origin."""
    try:
        read_part(path, shape, origin)
    except PartFault as fault:
        return fault.message
    return None


def read_part(
    path: Path, shape: tuple[int, ...] | None, origin: PartOrigin
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return the features of a part, of `shape` (rows, …) or any, and (rows,) which are there, all of it checked.

    Raises:
        PartFault: it must be made (again).
    """
    if not is_plain(path):
        raise PartFault("a link" if path.is_symlink() else "missing")
    data = path.read_bytes()
    if hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise PartFault("damaged: checksum")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            features, valid = _datasets(file)
            if file.attrs["format"] not in (2, PART_FORMAT) or features.chunks is not None:
                raise PartFault("other format")
            if file.attrs["teacher_fingerprint"] != origin.teacher_fingerprint:
                raise PartFault("stale: other teacher")
            if file.attrs["shard_sha256"] != origin.shard_sha256:
                raise PartFault("stale: other shard")
            if origin.first_row is not None and file.attrs.get("first_row") != origin.first_row:
                raise PartFault("stale: other rows")
            shape = features.shape if shape is None else shape
            if features.shape != shape or features.dtype != np.float16 or valid.shape != shape[:1]:
                raise PartFault("damaged: other shape")
            return features[:], valid[:].astype(bool, copy=False)
    except (OSError, KeyError, RuntimeError, ValueError):
        raise PartFault("damaged: not readable as HDF5") from None


def is_part(path: Path) -> bool:
    """Tell whether a file is a part as `write_part` wrote it, of whatever origin."""
    if not is_plain(path):
        return False
    data = path.read_bytes()
    return hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]


def part_batch_size(path: Path) -> int:
    """Return the batch size with which a whole part was encoded."""
    with h5py.File(path, "r") as file:
        return int(file.attrs["batch_size"])


def _datasets(file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Return `features` and `valid` of a part.

    Raises:
        KeyError: one is absent, or is no dataset whose values lie in this file.
    """
    found = []
    for name in ("features", "valid"):
        held = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(held, h5py.Dataset) or held.external or held.is_virtual:
            raise KeyError(f"no dataset {name} of its own")
        found.append(held)
    if found[1].dtype != np.bool_:
        raise KeyError("no dataset valid of flags")
    return found[0], found[1]


def precision_of_parts(slug: str, layout: Layout) -> Precision:
    """Return what the first whole part of a teacher was computed in; "auto" where there is none, or it does not say."""
    path = next(filter(is_part, sorted(layout.features(slug, "").parent.glob("*.h5"))), None)
    if path is None:
        return "auto"
    with h5py.File(path, "r") as file:
        found = file.attrs.get("precision")
    return found if found in ("fp32", "bf16") else "auto"


class FeatureRows(Protocol):
    """Features of a whole store, found by global row."""

    @property
    def level(self) -> Level:
        """Which rows of the store they belong to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a number."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) bool: which rows have features."""

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the features of global rows (n,), in their order: (n, *shape)."""


class Features:
    """The features of one name over a whole store, found by global row.

    Parts are mapped on first touch, in each process for itself: nothing of HDF5 stays open, and a pickle carries no
    data.
    """

    dtype = np.dtype(np.float16)

    def __init__(self, layout: Layout, slug: str, shards: tuple[Shard, ...], entry: FeatureSet) -> None:
        self._made_of = layout, slug, shards, entry
        self.slug = slug
        self.modality, self.level = entry.modality, entry.level
        self.shape, self.dim, self.unit = entry.shape, entry.dim, entry.unit
        self.fingerprint = entry.fingerprint
        self._paths = [layout.features(slug, shard.name) for shard in shards]
        self._origins = [
            PartOrigin(teacher_fingerprint=entry.fingerprint, shard_sha256=shard.sha256) for shard in shards
        ]
        self._counts = [shard.rows(entry.level) for shard in shards]
        self._bounds = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        self._lock = threading.Lock()
        self._parts: dict[int, NDArray[np.float16]] = {}
        self._view = _View.empty(len(self._paths), self.dim)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __reduce__(self) -> tuple[type[Features], tuple[Any, ...]]:
        return Features, self._made_of

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Return the features of the global `rows` (n,), in their order and with repeats: (n, *shape) float16.

        Raises:
            StoreError: a row is outside the store, or a part is damaged.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        owners = np.searchsorted(self._bounds, wanted, side="right") - 1
        outside = (wanted < 0) | (owners >= len(self._paths))
        if outside.any():
            raise StoreError(
                f"Row {wanted[outside][0]} of {self.slug} was asked for; it has rows 0 to {len(self) - 1}."
            )
        view = self._view
        if not view.mapped[owners].all():
            view = self._map(np.unique(owners))
        gathered: NDArray[np.float16] = view.window[view.starts[owners] + wanted * self.dim]
        return gathered.reshape(len(wanted), *self.shape)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) bool: which rows have features."""
        flags = []
        for number in range(len(self._paths)):
            with self._open(number) as file:
                flags.append(file["valid"][:])
        return np.concatenate(flags) if flags else np.empty(0, dtype=bool)

    def _map(self, numbers: NDArray[np.integer[Any]]) -> _View:
        """Map more parts and view them all; the new view replaces the old at once, for gathers in other threads."""
        with self._lock:
            for number in map(int, numbers):
                if number in self._parts:
                    continue
                path, count = self._paths[number], self._counts[number]
                with self._open(number) as file:
                    offset = file["features"].id.get_offset()
                # Arrow's maps keep no file open, as Python's do: a process may have fewer files than a store has parts.
                with pa.memory_map(str(path)) as file:
                    whole = file.read_buffer()
                part = np.frombuffer(whole, np.float16, count * self.dim, offset or 0)
                self._parts[number] = part.reshape(count, self.dim)
            self._view = _View.of(self._parts, self._bounds, self.dim)
            return self._view

    def _open(self, number: int) -> h5py.File:
        return _open_part(self._paths[number], (self._counts[number], *self.shape), self._origins[number])


@dataclass(frozen=True)
class _View:
    """One window over all mapped parts of a process.

    A gather that goes part by part costs about 7 µs a part, seven times the copying itself where a batch touches a
    hundred parts. So `window` views the process's memory from the lowest mapped part to the highest, one overlapping
    row beginning at each element, and all rows of all parts are taken at once. What lies between the parts is never
    touched: `gather` checks every row, and a row's start follows from its part's address.
    """

    mapped: NDArray[np.bool_]
    """(parts,) which ones are."""
    starts: NDArray[np.int64]
    """(parts,) the element at which the part's rows would begin if its first row were the store's row 0."""
    window: NDArray[np.float16]
    """(elements, dim), overlapping; never to be touched as a whole."""

    @classmethod
    def empty(cls, parts: int, dim: int) -> _View:
        """View nothing."""
        return cls(np.zeros(parts, bool), np.zeros(parts, np.int64), np.empty((0, dim), np.float16))

    @classmethod
    def of(cls, parts: dict[int, NDArray[np.float16]], bounds: NDArray[np.int64], dim: int) -> _View:
        """View the mapped `parts`, by number; `bounds` gives every part's first row."""
        addresses = {number: part.__array_interface__["data"][0] for number, part in parts.items()}
        lowest, highest = (choose(addresses, key=addresses.__getitem__) for choose in (min, max))
        size = np.dtype(np.float16).itemsize
        elements = (addresses[highest] - addresses[lowest]) // size + parts[highest].size
        window = np.lib.stride_tricks.as_strided(
            parts[lowest], shape=(elements - dim + 1, dim), strides=(size, size), writeable=False
        )
        mapped, starts = np.zeros(len(bounds) - 1, bool), np.zeros(len(bounds) - 1, np.int64)
        for number, address in addresses.items():
            mapped[number] = True
            starts[number] = (address - addresses[lowest]) // size - bounds[number] * dim
        return cls(mapped, starts, window)


def _open_part(path: Path, shape: tuple[int, ...], origin: PartOrigin) -> h5py.File:
    check_plain(path)
    try:
        file = h5py.File(path, "r")
        features, valid = _datasets(file)
        whole = features.shape == shape and features.dtype == np.float16 and valid.shape == shape[:1]
        whole = whole and file.attrs["teacher_fingerprint"] == origin.teacher_fingerprint
        whole = whole and file.attrs["shard_sha256"] == origin.shard_sha256
        # Rows are addressed in elements, so they must begin at one (HDF5 aligns them to more).
        whole = (
            whole
            and features.chunks is None
            and (features.id.get_offset() or int(shape[0] > 0)) % features.dtype.itemsize == 0
        )
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DamagedStoreError(f"cannot be read ({error})", path=path) from None
    if not whole:
        file.close()
        raise DamagedStoreError(path=path, expected=f"contiguous float16 rows of the shape {shape}, as in the manifest")
    return file
