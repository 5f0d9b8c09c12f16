"""Files that hold features: `.npy`, `.npz`, `.parquet` and `.h5`, opened as rows that are read some at a time.

What cannot be read at any place (a compressed `.npz`, a `.parquet`) is first spooled to a nameless file. Nothing is
ever unpickled.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from stores.errors import SourceError

_SPOOLED_BYTES: Final = 2**25
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
    try:
        found = opener(path, array, key, spool)
    except FileNotFoundError:
        raise SourceError(f"The file of features {path} does not exist. Name a file.") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as features: {error}.") from None
    if len(found.shape) < 2 or 0 in found.shape[1:]:
        raise SourceError(f"{path} holds an array of the shape {found.shape}; expected (rows, numbers) or more axes.")
    if found.keys is not None and len(found.keys) != found.shape[0]:
        raise SourceError(f"{path} has {found.shape[0]:,} rows of features and {len(found.keys):,} keys.")
    return found


def _npy(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    if array or key:
        raise ValueError("an .npy file holds one array and no keys; leave `array` and `key` out, or use an .npz")
    return _mapped(path, path, None)


def _npz(path: Path, array: str | None, key: str | None, spool: Spool) -> FileRows:
    with zipfile.ZipFile(path) as archive:
        chosen = _chosen(array, key, [name.removesuffix(".npy") for name in archive.namelist()])
        plain = spool.open()
        with archive.open(f"{chosen}.npy") as member:
            shutil.copyfileobj(member, plain, _SPOOLED_BYTES)
        plain.flush()
    keys = None
    if key is not None:
        with np.load(path, allow_pickle=False) as file:
            keys = _texts(file[key])
    return _mapped(path, Path(f"/dev/fd/{plain.fileno()}"), keys)


def _mapped(path: Path, plain: Path, keys: Array | None) -> FileRows:
    """Return the rows of the array in the file `plain`, in NumPy's format."""

    def load() -> Array:
        held: Array = npy.open_memmap(plain, "r")
        return held

    _check_numbers(load().dtype)
    # Mapped anew each time: what a map has touched counts as this process's memory as long as it lives.
    return FileRows(path, load().shape, lambda rows: load()[rows], keys)


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
        chosen = _chosen(array, key, [name for name in file if isinstance(file[name], h5py.Dataset)])
        shape, dtype = file[chosen].shape, file[chosen].dtype
        _check_numbers(dtype)
        keys = None
        if key is not None:
            held = file[key].asstr() if h5py.check_string_dtype(file[key].dtype) else file[key]
            keys = _texts(held[:])

    def read(rows: Array) -> Array:
        # HDF5 takes rows in their order and once each.
        wanted, places = np.unique(rows, return_inverse=True)
        with h5py.File(path, "r") as file:
            taken: Array = file[chosen][wanted] if len(wanted) else np.empty((0, *shape[1:]), dtype)
        return taken[places]

    return FileRows(path, shape, read, keys)


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
        raise ValueError("it holds null among its numbers")
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
    """Return keys as texts; whole numbers without a point."""
    if keys.dtype.kind == "S":
        keys = np.char.decode(keys, "utf-8")
    return np.array([str(key) for key in keys.tolist()], dtype=object)


def _check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}, not numbers")
