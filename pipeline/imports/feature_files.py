"""Files that hold features: `.npy`, `.npz`, `.parquet` and `.h5`, opened as rows that are read some at a time.

What cannot be read at any place (an `.npz`, a `.parquet`) is first spooled to a nameless file, whatever it claims to
hold. Nothing is ever unpickled, and no other file is read because one names it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.sources.unreadable import UNREADABLE, reason
from stores.errors import SourceError

_SPOOLED_BYTES: Final = 2**25
_MOST_INFLATED: Final = 1032
"""How many bytes deflate, HDF5's usual compression, makes of one at the most."""
Array = NDArray[Any]


class Spool:
    """Nameless files in a folder, which go when the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, ExitStack()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def open(self) -> IO[bytes]:
        return self._open.enter_context(tempfile.TemporaryFile(dir=self._folder))


class FileRows:
    """The rows of one file: `shape` (n, …) numbers, read by number, and what names them."""

    def __init__(self, path: Path, shape: tuple[int, ...], read: Callable[[Array], Array], keys: Array | None) -> None:
        self.path, self.shape, self._read = path, shape, read
        self.keys = keys
        """(n,) names of the rows as texts; None where no key was asked for."""

    def read(self, rows: Array) -> Array:
        """Return the rows of these numbers, (k, …), as the file has them."""
        with _readable(self.path):
            return self._read(rows)


def open_rows(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    """Open a file of features: its `array` (dataset, column), or the only one; rows are named by that called `key`.

    What must be copied to be read lies in `spool`, as long as it is open.

    Raises:
        SourceError: there is no such file or array, it is of another kind, or not of numbers.
    """
    openers = {".npy": _npy, ".npz": _npz, ".parquet": _parquet, ".h5": _hdf5, ".hdf5": _hdf5}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise SourceError(f"{path} is no file of features that can be imported. Expected {', '.join(openers)}.")
    with _readable(path):
        found = opener(path, array, key, spool)
    if len(found.shape) < 2 or 0 in found.shape[1:]:
        raise SourceError(f"{path} holds an array of the shape {found.shape}; expected (rows, numbers) or more axes.")
    if found.keys is not None and len(found.keys) != found.shape[0]:
        raise SourceError(f"{path} has {found.shape[0]:,} rows of features and {len(found.keys):,} keys.")
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"The file of features {path} does not exist. Name a file.") from None
    except UNREADABLE as error:
        raise SourceError(f"{path} cannot be read as features: {reason(error)}.") from None


def _npy(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    if array or key:
        raise ValueError("an .npy file holds one array and no keys; leave `array` and `key` out, or use an .npz")
    return _mapped(path, path, None)


def _npz(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    with zipfile.ZipFile(path) as archive:
        chosen = _chosen(array, key, [name.removesuffix(".npy") for name in archive.namelist()])
        plain = _spooled(archive, chosen, spool)
        keys = None if key is None else _texts(_load(_spooled(archive, key, spool)))
    return _mapped(path, plain, keys)


def _spooled(archive: zipfile.ZipFile, name: str, spool: Spool) -> Path:
    plain = spool.open()
    with archive.open(f"{name}.npy") as member:
        shutil.copyfileobj(member, plain, _SPOOLED_BYTES)
    plain.flush()
    return Path(f"/dev/fd/{plain.fileno()}")


def _mapped(path: Path, plain: Path, keys: Array | None) -> FileRows:
    """Return the rows of the array in the file `plain`, in NumPy's format."""
    _check_numbers(_load(plain).dtype)
    # Mapped anew each time: what a map has touched counts as this process's memory as long as it lives.
    return FileRows(path, _load(plain).shape, lambda rows: _load(plain)[rows], keys)


def _load(plain: Path) -> Array:
    with np.errstate(over="raise"):  # NumPy multiplies the numbers of a shape, whatever they are
        held: Array = npy.open_memmap(plain, "r")
    return held


def _parquet(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    file = pq.ParquetFile(path)
    chosen = _chosen(array, key, file.schema_arrow.names)
    plain, keys, first = spool.open(), [np.empty(0, object)], None
    for batch in file.iter_batches(batch_size=1024, columns=[chosen, *([key] if key else [])]):
        if key:
            keys.append(_texts(np.array(batch[key].to_pylist(), dtype=object)))
        values = _listed(batch[chosen])
        first = values if first is None else first
        if values.shape[1:] != first.shape[1:]:
            raise ValueError(f"its rows have the shapes {first.shape[1:]} and {values.shape[1:]}")
        plain.write(np.ascontiguousarray(values, first.dtype).data)
    plain.flush()
    first = np.empty((0, 0), np.float32) if first is None else first
    shape, dtype = (file.metadata.num_rows, *first.shape[1:]), first.dtype
    if plain.tell() != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise ValueError("it ends before its last row")

    def read(rows: Array) -> Array:
        return np.memmap(plain, dtype, "r", shape=shape)[rows] if shape[0] else np.empty(shape, dtype)[rows]

    return FileRows(path, shape, read, np.concatenate(keys) if key else None)


def _hdf5(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    with h5py.File(path, "r") as file:
        chosen = _chosen(array, key, [name for name in file if _is_link(file, name) or _is_dataset(file, name)])
        rows = _own_dataset(file, chosen)
        shape, dtype = rows.shape, rows.dtype
        _check_numbers(dtype)
        keys = None
        if key is not None:
            held = _own_dataset(file, key)
            keys = _texts((held.asstr() if h5py.check_string_dtype(held.dtype) else held)[()])

    def read(rows: Array) -> Array:
        # HDF5 takes rows in their order and once each.
        wanted, places = np.unique(rows, return_inverse=True)
        with h5py.File(path, "r") as file:
            taken: Array = file[chosen][wanted] if len(wanted) else np.empty((0, *shape[1:]), dtype)
        return taken[places]

    return FileRows(path, shape, read, keys)


def _is_link(file: h5py.File, name: str) -> bool:
    return not isinstance(file.get(name, getlink=True), h5py.HardLink)


def _is_dataset(file: h5py.File, name: str) -> bool:
    return isinstance(file[name], h5py.Dataset)


def _own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of the file whose bytes all lie in it, and are no more than it can hold."""
    if _is_link(file, name):
        raise ValueError(f"{name} is a link, and links are not followed; copy what it leads to into the file")
    held: h5py.Dataset = file[name]
    if held.shape is None:
        raise ValueError(f"{name} is empty; expected rows")
    if held.external or held.is_virtual:
        raise ValueError(f"{name} lies in other files, which are not read; copy it into this one")
    size, largest = Path(file.filename).stat().st_size, max(held.size, math.prod(held.chunks or ()))
    if largest * held.dtype.itemsize > _MOST_INFLATED * size:
        raise ValueError(f"{name} claims {largest * held.dtype.itemsize:,} bytes, more than fit in a file of {size:,}")
    if held.size and held.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise ValueError(f"{name} is not whole: rows that were never written would be zeros")
    return held


def _listed(column: pa.Array) -> Array:
    """Return a column of lists, of lists of lists …, as an array: (rows, …)."""
    if column.null_count:
        raise ValueError(f"{column.null_count:,} of its rows are null; leave them out and name rows by a key")
    shape, flat = [len(column)], column
    while isinstance(flat, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = set(flat.value_lengths().to_pylist()) if not isinstance(flat, pa.FixedSizeListArray) else set()
        if len(lengths) > 1:
            raise ValueError(f"its lists have {min(lengths)} to {max(lengths)} entries; all rows must be of one shape")
        shape.append(lengths.pop() if lengths else getattr(flat.type, "list_size", 0))
        flat = flat.flatten()
        if flat.null_count:
            raise ValueError("it holds null within its rows")
    values = flat.to_numpy(zero_copy_only=False)
    _check_numbers(values.dtype)
    shaped: Array = values.reshape(shape)
    return shaped


def _chosen(array: str | None, key: str | None, names: list[str]) -> str:
    others = [name for name in names if name != key]
    if key is not None and key not in names:
        raise ValueError(f"it has no {key!r}; it has {', '.join(names) or 'nothing'}")
    if array is None and len(others) != 1:
        raise ValueError(f"it holds {', '.join(others) or 'nothing'}; say which one with `array`")
    chosen = array if array is not None else others[0]
    if chosen not in names:
        raise ValueError(f"it has no {chosen!r}; it has {', '.join(names) or 'nothing'}")
    return chosen


def _texts(keys: Array) -> Array:
    """Return keys (n,) as texts; whole numbers without a point."""
    if keys.ndim != 1:
        raise ValueError(f"its keys have the shape {keys.shape}, expected one for each row")
    if keys.dtype.kind == "S":
        keys = np.char.decode(keys, "utf-8")
    return np.array([str(key) for key in keys.tolist()], dtype=object)


def _check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}, not numbers")
