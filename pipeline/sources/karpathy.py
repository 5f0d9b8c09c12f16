"""Karpathy's split file: `images[]` with `filename`, `split`, `sentences[].raw`, perhaps `filepath`."""

from __future__ import annotations

from typing import Any, Final

from pipeline.sources.caption_values import captions_in, kind_of
from pipeline.sources.entries import bad, fault_of, id_in, malformed
from pipeline.sources.files import SourceFile, in_usual_order
from pipeline.sources.image_files import ImageFile
from pipeline.sources.image_places import ImagePlaces
from pipeline.sources.records import BadRecord, Record
from stores.errors import SourceError

_SPLITS: Final = {"restval": "train"}
"""Karpathy's COCO file calls part of the training set "restval"."""
_IDS: Final = ("cocoid", "imgid", "filename")


def karpathy_records(
    file: SourceFile, content: dict[str, Any], places: ImagePlaces
) -> dict[str, list[Record | BadRecord]]:
    """Return the records of each split; entries whose split cannot be told are faults of the first.

    Raises:
        SourceError: no entry has a split.
    """
    entries = content["images"]
    ids = (
        key for key in _IDS if any(isinstance(entry, dict) and id_in(entry.get(key)) is not None for entry in entries)
    )
    id_key = next(ids, _IDS[0])
    records: dict[str, list[Record | BadRecord]] = {}
    astray: list[Record | BadRecord] = []
    for number, entry in enumerate(entries):
        place = f"images[{number}]"
        if not isinstance(entry, dict):
            astray.append(malformed(place, f"{place} is {kind_of(entry)}, expected an object"))
            continue
        # Not another key's value where this one's is absent: that may be another image's id.
        found = id_in(entry.get(id_key))
        source_id = place if found is None else str(found)
        split = entry.get("split")
        if isinstance(split, str):
            records.setdefault(_SPLITS.get(split, split), []).append(_record(places, place, source_id, entry))
        else:
            fault = fault_of(entry, "split", "train, restval, val or test")
            astray.append(malformed(source_id, f"{place} {fault}", len(captions_in(entry.get("sentences")))))
    if astray and not records:
        raise SourceError(f"{file}: images[0] has no split, nor has any other; expected train, restval, val or test.")
    if astray:
        records[in_usual_order(records)[0]] += astray
    return records


def _record(places: ImagePlaces, place: str, source_id: str, entry: dict[str, Any]) -> Record | BadRecord:
    captions = captions_in(entry.get("sentences"))
    name, folder = entry.get("filename"), entry.get("filepath") or ""
    if not isinstance(name, str) or not name:
        return malformed(source_id, f"{place} {fault_of(entry, 'filename', 'a file name')}", len(captions))
    if not isinstance(folder, str):
        return malformed(source_id, f"{place} {fault_of(entry, 'filepath', 'a folder')}", len(captions))
    if not captions:
        return bad(source_id, "no-captions", f"{place} has no sentences")
    # People point at the folder above Karpathy's `filepath` or at the images themselves.
    inner = f"{folder}/{name}" if folder and places.has_folder(folder) else name
    return Record(source_id=source_id, captions=captions, image=ImageFile(places.root, inner))
