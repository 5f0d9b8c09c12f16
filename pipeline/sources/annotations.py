"""The two usual captions documents: Karpathy's split JSON, and COCO captions JSON (one file per split).

Both are one JSON document each, so they are held in memory, unlike the formats that are read as streams.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.sources.annotation_records import coco_records, karpathy_records
from pipeline.sources.caption_values import kind_of
from pipeline.sources.files import Folder, SourceFile
from pipeline.sources.image_files import ImagePlaces
from pipeline.sources.json_documents import decode_json
from pipeline.sources.listed import ListedSource
from pipeline.sources.places import Files
from pipeline.sources.texts import decoded
from pipeline.sources.unreadable import readable
from stores.errors import SourceError


def open_annotations(
    files: dict[str, Files],
    wanted: str,
    named: bool,
    images: Folder | None,
    encoding: str | None = None,
    require: Collection[str] = ("image", "text"),
) -> ListedSource:
    """Open one Karpathy file, or one COCO captions file per split; `wanted` is what data.format asks for.

    An image of which there are no captions is a bad record if `require` has text.

    Where the splits were not given by name (`named`), all `files` are those of "train".

    Raises:
        SourceError: the files are neither.
    """
    if any(len(found) != 1 for found in files.values()):
        several = ", ".join(str(file) for found in files.values() for file in found[:3])
        advice = "Name one file a split: --source train=FILE --source val=FILE."
        raise SourceError("captions files in JSON", path=several, expected="one", advice=advice)
    single = {split: found[0] for split, found in files.items()}
    contents = {split: _document(file, encoding) for split, file in single.items()}
    if wanted != "karpathy" and all(_has_lists(content, "images", "annotations") for content in contents.values()):
        _check_splits(single, named=named, coco=True)
        records = {
            split: coco_records(contents[split], _coco_places(single[split], images), require) for split in single
        }
        # A COCO file's ids are its own; people's files often count from zero in each split.
        return ListedSource("coco", single, records, {}, ids_by_split=True)
    if wanted != "coco" and all(_has_lists(content, "images") for content in contents.values()):
        _check_splits(single, named=named, coco=False)
        file = single["train"]
        records = karpathy_records(file, contents["train"], ImagePlaces(images or file.folder), require)
        return ListedSource("karpathy", {"all": file}, records, {})
    keys = "; ".join(f"{single[split]} has the keys {', '.join(list(found)[:8])}" for split, found in contents.items())
    raise SourceError(
        f"No known format: {keys}. Expected Karpathy's split file (images[].split), one COCO captions file "
        f"per split (images, annotations), or a list of records with an image and a caption each."
    )


def _check_splits(files: Mapping[str, SourceFile], *, named: bool, coco: bool) -> None:
    """See that the splits of COCO's files are named, and those of Karpathy's are not."""
    shown = ", ".join(map(str, files.values()))
    if coco and not named:
        advice = f"Say which split each file is: --source train={shown}, or data.source: {{train: {shown}}}."
        raise SourceError("a COCO captions file, which names no split", path=shown, advice=advice)
    if named and not coco:
        problem = "without annotations this is Karpathy's split file, which says itself what split each image is of"
        raise SourceError(problem, path=shown, advice="Name that one file, without a split: --source FILE.")


def _has_lists(content: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(content.get(key), list) for key in keys)


def _document(file: SourceFile, encoding: str | None) -> dict[str, Any]:
    """Return the JSON object in a captions file.

    Raises:
        SourceError: the file cannot be read or is not a JSON object.
    """
    with readable(f"The captions file {file}"), file.open_plain() as stream:
        text = decoded(stream.read(), encoding)
    try:
        value = decode_json(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"The captions file {file} is not JSON: {error}. Is the file whole?") from None
    if not isinstance(value, dict):
        raise SourceError(f"The captions file {file} holds {kind_of(value)}, expected an object.")
    return value


def _coco_places(file: SourceFile, images: Folder | None) -> ImagePlaces:
    places = ImagePlaces(images or file.folder)
    if images is None and places.has_folder("images"):
        return ImagePlaces(Folder(file.system, file.folder.path("images")))
    return places
