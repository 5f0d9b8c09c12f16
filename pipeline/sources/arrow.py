"""Hugging Face data sets as `save_to_disk` leaves them: folders of Arrow streams, read message by message.

An image's bytes lie in the file as they are, so a record keeps only their place. One message (of usually 100 to 1,000
rows) is held at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.sources.files import Folder, SourceFile, asked, content, in_usual_order
from pipeline.sources.image_files import StoredImage
from pipeline.sources.places import Files, common_split
from pipeline.sources.table_source import Row
from pipeline.sources.unreadable import readable
from stores.errors import SourceError


def saved_files(folder: Folder) -> dict[str, Files]:
    """Return the Arrow files of each split of a data set, or of a dictionary of data sets, saved in a folder.

    Raises:
        SourceError: a file that says what belongs to it is absent, or not as `save_to_disk` writes it.
    """
    if not asked(folder.system.exists, folder.path("dataset_dict.json")):
        state = _read_state(folder)
        split = state.get("_split")
        return {common_split(split) if isinstance(split, str) else "train": _data_files(folder, state)}
    names = _read_json(folder, "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names or not all(_is_plain(name) for name in names):
        raise SourceError(f"{folder.path('dataset_dict.json')} lists no splits; expected the names of its sub-folders.")
    splits: dict[str, Files] = {}
    for name in names:
        inner = Folder(folder.system, folder.path(name))
        splits[common_split(name)] = splits.get(common_split(name), ()) + _data_files(inner, _read_state(inner))
    return {split: splits[split] for split in in_usual_order(splits)}


def _read_state(folder: Folder) -> dict[str, Any]:
    state = _read_json(folder, "state.json")
    if state.get("_indices_data_files"):
        raise SourceError(f"{folder} was saved as a selection of rows. Save data_set.flatten_indices() instead.")
    return state


def _data_files(folder: Folder, state: dict[str, Any]) -> Files:
    listed = state.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or ()]
    if not names or not all(_is_plain(name) for name in names):
        expected = "a list of plain file names in the same folder"
        raise SourceError(path=folder.path("state.json"), where="_data_files", found=listed, expected=expected)
    with readable(folder):
        return tuple(folder.file(str(name)) for name in names)


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    path = folder.path(name)
    with readable(path):
        value = json.loads(content(folder.system, path))
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


class ArrowTable:
    """A file in Arrow's stream format."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def columns(self) -> list[str]:
        with readable(self.file), self.file.open() as stream:
            return list(pa.ipc.open_stream(pa.PythonFile(stream, mode="r")).schema.names)

    def rows(self, wanted: Sequence[str]) -> Iterator[Row]:
        with self.file.open() as stream:
            source = pa.PythonFile(stream, mode="r")
            schema = pa.ipc.read_schema(pa.ipc.read_message(source))
            number = 0
            while (batch := self._next_batch(source, schema)) is not None:
                columns = [self._values(batch[0].column(name), batch[1]) for name in wanted]
                for values in zip(*columns, strict=True):
                    yield Row(number, f"row {number}", values)
                    number += 1

    def _next_batch(self, source: Any, schema: Any) -> tuple[Any, int] | None:
        """Return the next batch, and what must be added to an address within it to get a place in the file."""
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            if self.file.read(self.file.size - 4, self.file.size) != b"\0\0\0\0":
                raise SourceError(f"{self.file} is cut short: it lacks the mark of its end. Copy it again.") from None
            return None
        if message.type != "record batch":
            raise SourceError(f"{self.file} has dictionary-encoded columns, which save_to_disk does not write.")
        body, batch = message.body, pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)  # or offsets that lead out of it would be followed, and end the process
        return batch, source.tell() - body.size - body.address

    def _values(self, column: Any, shift: int) -> list[Any]:
        kind = column.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            stored = self._stored(column.field("bytes"), shift)
            paths = column.field("path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(column)
            # An image that was not taken into the file is named by its path.
            return [path if image is None else image for image, path in zip(stored, paths, strict=True)]
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return self._stored(column, shift)
        values: list[Any] = column.to_pylist()
        return values

    def _stored(self, column: Any, shift: int) -> list[StoredImage | None]:
        """Return where in the file each value of a column of bytes lies."""
        if not len(column) or column.null_count == len(column):
            return [None] * len(column)
        _, offsets, values = column.buffers()
        width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        ends = np.frombuffer(offsets, dtype=width)[column.offset : column.offset + len(column) + 1]
        places = (values.address + shift + ends.astype(np.int64)).tolist()
        if places[0] < 0 or places[-1] > self.file.size:
            raise SourceError(f"{self.file} is compressed within; save it again without compression.")
        valid = column.is_valid().to_pylist()
        return [
            StoredImage(self.file, start, end - start) if good else None
            for start, end, good in zip(places, places[1:], valid, strict=False)
        ]
