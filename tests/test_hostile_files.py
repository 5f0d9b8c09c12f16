"""Files that claim more than they hold, that are no files, or whose damage shows only while they are read."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_odd_tars import IMAGE
from test_sources import listed, opened

from pipeline.imports.feature_files import Spool, open_rows
from pipeline.sources.caption_values import captions_in
from pipeline.sources.image_files import MAX_BYTES
from pipeline.sources.parquet import MOST_LISTED
from stores import SourceError


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


NO_FILES = [(_pipe, "unreadable-file"), (_device, "unreadable-file"), (_sparse, "too-many-bytes")]


@pytest.mark.parametrize(("make", "reason"), NO_FILES, ids=["pipe", "device", "sparse"])
def test_what_is_no_file_or_too_large_is_never_read(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(IMAGE)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("told")
    (table := tmp_path / "t.csv").write_text("image,caption\nb.jpg,told\n")
    for name in ("b.jpg", "c.txt"):
        make(tmp_path / name)
    found = {name: image for name, _, image in listed(opened(str(tmp_path), format="folder"))}
    assert found == {"a.jpg": IMAGE, "b.jpg": reason, "c.jpg": "unreadable-file"}
    assert [image for *_, image in listed(opened(str(table)))] == [reason]


def test_a_pipe_is_no_data_set_and_a_link_to_a_file_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    for source in ("t.csv", "*.csv"):
        with pytest.raises(SourceError, match="is a pipe, a device or a socket, expected a file"):
            opened(str(tmp_path / source))
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "told.txt").write_text("image\tcaption\na.jpg\ttold\n")
    (tmp_path / "link.tsv").symlink_to("told.txt")
    assert listed(opened(str(tmp_path / "*.tsv"))) == [("0", ("told",), IMAGE)]


ROWS = np.ones((10, 4), np.float32)


def npy(shape: str = "(10, 4)", values: bytes = ROWS.tobytes(), descr: str = "<f4") -> bytes:
    """An .npy whose header says `shape`."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


def zipped(method: int = zipfile.ZIP_STORED, key: bytes = b"", listed: dict[int, int] | None = None) -> bytes:
    """An .npz of rows and perhaps keys; in how its directory lists the rows, some bytes are others."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", npy())
        if key:
            archive.writestr("id.npy", key)
    data = bytearray(stream.getvalue())
    for place, value in (listed or {}).items():
        data[data.index(b"PK\1\2") + place] = value
    return bytes(data)


def compressed(method: int) -> bytes:
    """An .npz whose rows' compressed bytes are damaged."""
    data = bytearray(zipped(method))
    data[35:80] = b"\xff" * 45
    return bytes(data)


def in_hdf5(make: Callable[[h5py.File], object]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        make(file)
    return stream.getvalue()


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(10, 4), dtype=np.float32)
    layout[:] = h5py.VirtualSource("absent.h5", "x", shape=(10, 4))
    file.create_virtual_dataset("x", layout)


def partly(file: h5py.File) -> None:
    file.create_dataset("x", (10, 4), np.float32, chunks=(5, 4))[:5] = 1


def parquet(values: list[list[float | None]]) -> bytes:
    pq.write_table(pa.table({"x": values}), stream := io.BytesIO())
    return stream.getvalue()


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "cut-header": (".npy", npy("(10, "), "the header is cut short or damaged"),
    "nested-header": (".npy", npy("(" * 4000 + ")" * 4000), "cannot be read as features"),
    "overflow": (".npy", npy("(2, 8589934592, 2147483648)"), "overflow"),
    "cut-key": (".npz", zipped(key=npy("(10, ")), "the header is cut short or damaged"),
    "one-key": (".npz", zipped(key=npy("()", b"a", "|S1")), r"its keys have the shape \(\)"),
    "claimed-keys": (".npz", zipped(key=npy("(10,)", b"a", "|S8000000000000")), "cannot be read as features"),
    "unknown-method": (
        ".npz",
        zipped(listed={10: 99}),
        "method",
    ),
    "encrypted": (".npz", zipped(listed={8: 1}), "encrypted"),
    "deflated": (".npz", compressed(zipfile.ZIP_DEFLATED), "while decompressing"),
    "lzma": (".npz", compressed(zipfile.ZIP_LZMA), "cannot be read as features"),
    "null": (".parquet", parquet([[1.0, None]] * 10), "it holds null within its rows"),
    "hdf5-bytes-of-others": (
        ".h5",
        in_hdf5(lambda file: file.create_dataset("x", (1, 2), np.uint8, external=[("o.bin", 0, 2)])),
        "lies in other files",
    ),
    "hdf5-virtual": (".h5", in_hdf5(virtual), "lies in other files"),
    "hdf5-link": (".h5", in_hdf5(lambda file: file.__setitem__("x", h5py.ExternalLink("o.h5", "x"))), "x is a link"),
    "hdf5-soft-link": (".h5", in_hdf5(lambda file: file.__setitem__("x", h5py.SoftLink("/y"))), "x is a link"),
    "hdf5-never-written": (".h5", in_hdf5(partly), "rows that were never written would be zeros"),
    "hdf5-empty": (".h5", in_hdf5(lambda file: file.__setitem__("x", h5py.Empty("f4"))), "x is empty"),
    "hdf5-claim": (
        ".h5",
        in_hdf5(lambda file: file.create_dataset("x", (2**40, 4), np.float32, chunks=(2**20, 4))),
        "x claims 17,592,186,044,416 bytes, more than fit",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_features_end_in_one_message(tmp_path: Path, name: str) -> None:
    ending, data, message = DAMAGED[name]
    (path := tmp_path / f"f{ending}").write_bytes(data)
    key = "id" if b"id.npy" in data else None
    with Spool(tmp_path) as spool, pytest.raises(SourceError, match=f"^{path} .*{message}"):
        open_rows(path, None, key, spool)


def texts_with(offsets: list[int]) -> pa.Array:
    data = pa.py_buffer(b"one and two")
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array(offsets, np.int32)), data])


def images_with(offsets: list[int]) -> pa.Array:
    return texts_with(offsets).view(pa.binary())


SAVED = {
    "texts": (images_with([0, 3, 11]), texts_with([0, 1 << 30, 11])),
    "images": (images_with([0, -5, 11]), texts_with([0, 3, 11])),
}


@pytest.mark.parametrize("name", SAVED)
def test_offsets_that_lead_out_of_a_saved_data_set_are_not_followed(tmp_path: Path, name: str) -> None:
    image, caption = SAVED[name]
    batch = pa.record_batch({"image": image, "caption": caption})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(SourceError, match=r"data\.arrow cannot be read: .*[Oo]ffset"):
        list(opened(str(tmp_path)).records("train"))


SLOW = {
    "space": "['a'" + " " * 1_000_000 + "z",
    "space-in-list": "['a'" + " " * 1_000_000 + "]z",
    "words": "['a']" + ", b=" * 60 + "(",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_text_that_almost_spells_a_list_is_read_once(name: str) -> None:
    (found,) = captions_in(SLOW[name])
    assert found == SLOW[name] or getattr(found, "reason", "") == "malformed-caption"


@pytest.mark.parametrize("last", [b"2 " * 20_000, b"0 a=b\n", b"9 a=b\n"], ids=["no-records", "no-length", "too-long"])
def test_an_extended_header_of_a_tar_is_read_once(tmp_path: Path, last: bytes) -> None:
    members = {"a.jpg": IMAGE, "a.txt": b"told"}
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            path = f"{9 + len(name)} path={name}\n".encode()
            for records in (last, b"5 a=\n" * 100_000 + path + last):
                header = tarfile.TarInfo("long")
                header.type, header.size = tarfile.XHDTYPE, len(records)
                tar.addfile(header, io.BytesIO(records))
            member = tarfile.TarInfo("short")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert listed(opened(str(tmp_path / "t.tar"))) == [("a", ("told",), IMAGE)]


def test_rows_of_millions_of_captions_cost_no_other_row(tmp_path: Path) -> None:
    many = [["told"] * (MOST_LISTED + 1), ["one", "two"], None, [None]]
    nested = [[["told"]], [["told"] * 600] * 20, [["told"]] * 2, [["told"] * MOST_LISTED]]
    columns = {"image": ["a.jpg"] * 4, "caption": many, "nested": nested}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    found = listed(opened(str(tmp_path / "t.parquet"), columns={"caption": "caption"}))
    assert [row[2] for row in found] == ["malformed-record", IMAGE, IMAGE, IMAGE]
    found = listed(opened(str(tmp_path / "t.parquet"), columns={"caption": "nested"}))
    assert [row[2] for row in found] == [IMAGE, "malformed-record", IMAGE, "malformed-record"]


def test_null_among_captions_of_bytes_is_no_caption(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.jpg"] * 2, "caption": pa.array([None, b"told"], pa.binary())})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (_, (null,), image), (_, told, _) = listed(opened(str(tmp_path / "t.parquet")))
    assert (getattr(null, "reason", ""), image, told) == ("empty-caption", IMAGE, ("told",))
