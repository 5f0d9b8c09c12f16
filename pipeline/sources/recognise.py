"""What format a source is of, told by its content; `data.format` overrides, but not against all evidence."""

from __future__ import annotations

import tarfile
from collections import Counter
from itertools import islice
from typing import Final

from pipeline.sources.delimited import file_dialect
from pipeline.sources.facc import RECORDINGS
from pipeline.sources.file_names import is_image, plain_suffix
from pipeline.sources.files import Folder, SourceFile, asked, walk
from pipeline.sources.jsonl import LINES_ENDINGS, json_form
from pipeline.sources.precomp import MARKS as PRECOMP
from pipeline.sources.texts import decoded
from pipeline.sources.unreadable import readable
from stores.errors import SourceError
from stores.parameters import Data

ENDINGS: Final = {
    "webdataset": (".tar",),
    "parquet": (".parquet", ".pq"),
    "jsonl": LINES_ENDINGS,
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
}
"""Which files of a folder belong to a format. Within a file, content decides."""
_FORMATS: Final = (
    "karpathy, coco, csv, tsv, jsonl, parquet, folder, webdataset, huggingface, cub, facc, precomp (docs/formats.md)"
)
_MARKS: Final = {
    "huggingface": (("dataset_dict.json", "state.json"),),
    "cub": (("image_class_labels.txt",), ("train_test_split.txt",)),
    "facc": (RECORDINGS,),
    "precomp": PRECOMP,
}
"""The files by which a folder is known: of each group one."""
_HEAD: Final = 64 << 10
_LOOKED_AT: Final = 10_000
_MAGIC: Final = (
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream; name the folder in which save_to_disk left it"),
    (b"\xff\xd8\xff", "a JPEG image; name the folder of the images"),
    (b"\x89PNG", "a PNG image; name the folder of the images"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"PK\x03\x04", "a ZIP archive"),
)


def folder_format(folder: Folder, wanted: str) -> str:
    """Return the format of a folder's data set: `huggingface`, one of `ENDINGS`, or `folder`.

    Raises:
        SourceError: it holds none, or several.
    """
    with readable(folder):
        if known := next((kind for kind, has in _MARKS.items() if _has(folder, has)), None):
            found, likely, counts = [known], [known], ""
        else:
            found, likely, counts = _formats_below(folder)
    wanted_here = "parquet" if wanted == "huggingface" and "huggingface" not in found else wanted
    if wanted_here in found:
        return wanted_here
    if wanted != "auto" or len(likely) != 1:
        holds = " and ".join(found) if found else f"no data set: its files end in {counts}" if counts else "nothing"
        said = f"data.format says {wanted}, but it" if wanted != "auto" else "It"
        raise SourceError(
            f"{folder}: {said} holds {holds}. Name one file or pattern, or set data.format to what is meant. "
            f"Known: {_FORMATS}."
        )
    return likely[0]


def _has(folder: Folder, groups: tuple[tuple[str, ...], ...]) -> bool:
    return all(any(asked(folder.system.exists, folder.path(name)) for name in names) for names in groups)


def _formats_below(folder: Folder) -> tuple[list[str], list[str], str]:
    """Return the formats of which there are files below a folder, those that may be meant, and the endings of all."""
    names = ((below, name) for below, files in walk(folder) for name, _ in files)
    counts: Counter[str] = Counter()
    places: dict[str, set[str]] = {}
    for below, name in islice(names, _LOOKED_AT):
        counts[plain_suffix(name)] += 1
        if kind := _kind(name):
            places.setdefault(kind, set()).add(below)
    found = [kind for kind in (*ENDINGS, "folder") if kind in places]
    endings = ", ".join(f"{ending or '(nothing)'} ({count})" for ending, count in counts.most_common(5))
    return found, _likely(found, places), endings


def _kind(name: str) -> str | None:
    ending = plain_suffix(name)
    if is_image(name):
        return "folder"
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def _likely(found: list[str], places: dict[str, set[str]]) -> list[str]:
    """Leave out what lies in the same folders as another format because it describes or belongs to it."""
    if "webdataset" in found:
        # img2dataset leaves a Parquet file beside each tar; anything else may be meant as well.
        return [kind for kind in found if kind != "parquet" or places[kind] - places["webdataset"]]
    tables = [kind for kind in found if kind != "folder"]
    return tables or found


def file_format(file: SourceFile, data: Data) -> str:
    """Return the format of a file: one of `ENDINGS`, or `json` for a whole document.

    Raises:
        SourceError: it is of no known format, or not of the one that data.format says.
    """
    wanted = data.format
    with readable(file):
        found, what = _look(file, data)
    if wanted == "auto" and found:
        return found
    document = wanted in ("karpathy", "coco")
    if found == ("json" if document else wanted) or (found == "jsonl" and document):
        return "json" if document else wanted
    # A first line may deceive: with commas in a TSV's names, or only one column.
    if wanted in ("csv", "tsv") and found in ("csv", "tsv", None) and what != "empty":
        return wanted
    if wanted == "huggingface" and found == "parquet":
        return "parquet"
    said = f"data.format says {wanted}, but it is" if wanted != "auto" else "no known format: it is"
    raise SourceError(f"{file}: {said} {found or what}. Expected one of {_FORMATS}.")


def _look(file: SourceFile, data: Data) -> tuple[str | None, str]:
    """Return the format if it is known, and what the file seems to be."""
    start = file.read(0, min(_HEAD, file.size))
    if start.startswith(b"PAR1"):
        return "parquet", "Parquet"
    if _is_tar(start) or (file.name.endswith(".tar") and not any(start)):
        return "webdataset", "a tar"
    with file.open_plain() as stream:
        head = stream.read(_HEAD).removeprefix(b"\xef\xbb\xbf")
        text = decoded(head, data.encoding).lstrip()
        if not text:
            return None, "empty"
        if _is_tar(head):
            return None, "a compressed tar, in which no image can be reached by its place; decompress it first"
        if text.startswith(("{", "[")):
            return ("json" if json_form(file, data.encoding).kind == "document" else "jsonl"), "JSON"
    names = [what for magic, what in _MAGIC if head.startswith(magic)]
    first = text.partition("\n")[0]
    if not names and "\0" not in first and not first.startswith("<") and (dialect := file_dialect(file, data)):
        return ("csv" if dialect.quoted else "tsv"), "text"
    return None, next(iter(names), f"something that begins with {head[:40]!r}")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
