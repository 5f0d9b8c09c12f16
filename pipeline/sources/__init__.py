"""Data sets: the embedded scenes, captions files, tables, folders, tars; on any file system that fsspec reads."""

from collections.abc import Callable

from pipeline.sources.annotations import open_annotations
from pipeline.sources.arrow import ArrowTable, saved_files
from pipeline.sources.cub import open_cub
from pipeline.sources.delimited import DelimitedTable
from pipeline.sources.facc import open_facc
from pipeline.sources.files import Folder, SourceFile, folder_at, in_usual_order
from pipeline.sources.imagefolder import FolderSource
from pipeline.sources.jsonl import JsonTable
from pipeline.sources.parquet import ParquetTable
from pipeline.sources.places import Files, by_split, files_below, find
from pipeline.sources.precomp import open_precomp
from pipeline.sources.recognise import ENDINGS, file_format, folder_format
from pipeline.sources.records import BadRecord, GivenFeatures, HasFeatures, KnowsTruth, Record, Rejected, Source, Truth
from pipeline.sources.scenes.source import ScenesSource
from pipeline.sources.stored import StoreSource
from pipeline.sources.streamed import StreamedSource
from pipeline.sources.table_source import Table, TableReader, column_splits
from pipeline.sources.tars import tar_records
from stores.errors import SourceError
from stores.parameters import Data

__all__ = [
    "BadRecord",
    "GivenFeatures",
    "HasFeatures",
    "KnowsTruth",
    "Record",
    "Rejected",
    "Source",
    "Truth",
    "open_source",
]

_TABLES: dict[str, Callable[[SourceFile, Data, Folder | None], Table]] = {
    "csv": lambda file, data, _: DelimitedTable(file, data, "csv"),
    "tsv": lambda file, data, _: DelimitedTable(file, data, "tsv"),
    "jsonl": lambda file, data, images: JsonTable(file, data.encoding, images),
    "huggingface": lambda file, *_: ArrowTable(file),
    "parquet": lambda file, _, images: ParquetTable(file, images),
}


_PUBLISHED: dict[str, Callable[[Folder, Folder | None, Data], Source]] = {
    "cub": lambda folder, *_: open_cub(folder),
    "facc": lambda folder, _, data: open_facc(folder, data.speech),
    "precomp": lambda folder, images, data: open_precomp(folder, images, data.require),
}


def open_source(data: Data) -> Source:
    """Open the data set that `data` names, recognising its format by its content unless `data.format` says it.

    Raises:
        SourceError: a file is absent, unreadable, or of no known format.
    """
    if data.source == "scenes":
        return ScenesSource(data.scenes)
    if data.format == "store":
        return StoreSource(data)
    named = isinstance(data.source, dict)
    urls = data.source if isinstance(data.source, dict) else {"train": data.source}
    if not urls:
        raise SourceError("data.source names no split. Expected a path, or one a split: {train: …, val: …}.")
    images = folder_at(data.images, "data.images (--images)") if data.images else None
    places = {split: find(url) for split, url in urls.items()}
    kinds = {
        split: folder_format(place, data.format) if isinstance(place, Folder) else file_format(place[0], data)
        for split, place in places.items()
    }
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{split} is {kind}" for split, kind in kinds.items())
        raise SourceError(f"The splits are of different formats: {found}. Bring them into one.")
    (kind,) = set(kinds.values())
    if kind in _PUBLISHED:
        return _PUBLISHED[kind](_alone(places, kind), images, data)
    if kind == "folder":
        return FolderSource(
            {split: _as_folder(place) for split, place in places.items()}, named, data.encoding, data.require
        )
    if kind == "json":
        files = {split: place for split, place in places.items() if not isinstance(place, Folder)}
        return open_annotations(files, data.format, named, images, data.encoding, data.require)
    splits = _splits(places, kind, named)
    if kind == "webdataset":
        return StreamedSource(
            kind, splits, lambda file, prefix, _: tar_records(file, prefix, data.encoding, data.require)
        )
    return _open_tables(kind, splits, named, images, data)


def _alone(places: dict[str, Folder | Files], kind: str) -> Folder:
    """Return the one folder of a data set that says itself what its splits are."""
    place = next(iter(places.values()))
    if len(places) > 1 or not isinstance(place, Folder):
        raise SourceError(
            f"With the format {kind}, name the folder of the data set: it says itself what is in a split."
        )
    return place


def _as_folder(place: Folder | Files) -> Folder:
    if isinstance(place, Folder):
        return place
    raise SourceError(f"{place[0]} is a file. With data.format folder, name the folder of the images.")


def _splits(places: dict[str, Folder | Files], kind: str, named: bool) -> dict[str, Files]:
    """Return the files of each split: as they were named, or by the names of the files."""
    splits: dict[str, Files] = {}
    for split, place in places.items():
        found = _splits_of(place, kind)
        if named:
            found = {split: tuple(file for files in found.values() for file in files)}
        splits |= found
    return {split: splits[split] for split in in_usual_order(splits)}


def _splits_of(place: Folder | Files, kind: str) -> dict[str, Files]:
    if not isinstance(place, Folder):
        # One file is all of the data set, whatever it is called.
        return by_split(place) if len(place) > 1 else {"train": place}
    if kind == "huggingface":
        return saved_files(place)
    return by_split(files_below(place, ENDINGS[kind]))


def _open_tables(kind: str, splits: dict[str, Files], named: bool, images: Folder | None, data: Data) -> Source:
    reader = TableReader(lambda file: _TABLES[kind](file, data, images), data.columns, images, frozenset(data.require))
    if named or (len(splits) > 1 and data.columns.split is None):
        return StreamedSource(kind, splits, reader.read)
    files: tuple[SourceFile, ...] = tuple(file for split in splits.values() for file in split)
    found = column_splits(reader, files)
    if not found:
        return StreamedSource(kind, splits, reader.read)
    order = in_usual_order(found)
    return StreamedSource(kind, dict.fromkeys(order, files), reader.of_splits(order).read)
