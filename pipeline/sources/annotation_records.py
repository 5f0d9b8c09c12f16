"""Records of the two usual captions documents.

Karpathy's split file has `images[]` with `filename`, `split`, `sentences[].raw`, perhaps `filepath`. COCO captions have
`images[]` with `id` and `file_name`, `annotations[]` with `image_id` and `caption`. COCO's ids are joined as they
stand, then as numbers, then by file names, where that leaves one image alone. What cannot be joined is a record too,
so that it is counted and listed: an annotation without an id, an image without annotations, and the captions of an
image that is not listed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any, Final

from pipeline.sources.caption_values import captions_at, captions_in, kind_of
from pipeline.sources.file_names import stem_and_ending
from pipeline.sources.files import SourceFile, in_usual_order
from pipeline.sources.image_files import ImageFile, ImagePlaces
from pipeline.sources.records import BadRecord, Caption, Record, Rejected
from stores.errors import SourceError

Id = int | str
_EXACT: Final = 2**53
"""Beyond it, a float may stand for several whole numbers."""
_SPLITS: Final = {"restval": "train"}
"""Karpathy's COCO file calls part of the training set "restval"."""
_KARPATHY_IDS: Final = ("cocoid", "imgid", "filename")
_NUMBER: Final = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)
_NAMED: Final = 3
"""How many annotations a message names."""


def karpathy_records(
    file: SourceFile, content: dict[str, Any], places: ImagePlaces, require: Collection[str]
) -> dict[str, list[Record | BadRecord]]:
    """Return the records of each split; entries whose split cannot be told are faults of the first.

    Raises:
        SourceError: no entry has a split.
    """
    entries = content["images"]
    known = [entry for entry in entries if isinstance(entry, dict)]
    ids = (key for key in _KARPATHY_IDS if any(id_in(entry.get(key)) is not None for entry in known))
    id_key = next(ids, _KARPATHY_IDS[0])
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
            record = _karpathy_record(places, place, source_id, entry, require)
            records.setdefault(_SPLITS.get(split, split), []).append(record)
        else:
            fault = fault_of(entry, "split", "train, restval, val or test")
            astray.append(malformed(source_id, f"{place} {fault}", len(captions_in(entry.get("sentences")))))
    if astray and not records:
        raise SourceError(f"{file}: images[0] has no split, nor has any other; expected train, restval, val or test.")
    if astray:
        records[in_usual_order(records)[0]] += astray
    return records


def _karpathy_record(
    places: ImagePlaces, place: str, source_id: str, entry: dict[str, Any], require: Collection[str]
) -> Record | BadRecord:
    captions = captions_in(entry.get("sentences"))
    name, folder = entry.get("filename"), entry.get("filepath") or ""
    if captions and name is None and "image" not in require:
        return Record(source_id=source_id, captions=captions, image=None)
    if not isinstance(name, str) or not name:
        return malformed(source_id, f"{place} {fault_of(entry, 'filename', 'a file name')}", len(captions))
    if not isinstance(folder, str):
        return malformed(source_id, f"{place} {fault_of(entry, 'filepath', 'a folder')}", len(captions))
    if not captions and "text" in require:
        return bad(source_id, "no-captions", f"{place} has no sentences")
    return Record(source_id=source_id, captions=captions, image=ImageFile(places.root, places.within(folder, name)))


def coco_records(content: dict[str, Any], places: ImagePlaces, require: Collection[str]) -> list[Record | BadRecord]:
    """Return the records of a COCO captions document: those of its images, then what belongs to none."""
    images = _Images(content["images"])
    by_image, astray = _joined(content["annotations"], images)
    records = [_coco_record(places, images, number, by_image, require) for number in range(len(images.entries))]
    return records + astray


class _Images:
    """The images of a document, found by what annotations call them."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries
        self.numbers: dict[Id, int] = {}
        """The entry of each id: the first, or the first that names a file."""
        for number in range(len(entries)):
            found = self.id(number)
            if found is None:
                continue
            first = self.numbers.setdefault(found, number)
            if self.name(first) is None and self.name(number) is not None:
                self.numbers[found] = number

    def id(self, number: int) -> Id | None:
        entry = self.entries[number]
        return id_in(entry.get("id")) if isinstance(entry, dict) else None

    def name(self, number: int) -> str | None:
        name = self.entries[number].get("file_name")
        return name if isinstance(name, str) and name else None

    def find(self, called: Id) -> Id | None:
        """Return the id of the one image that is called so, or None if there is none, or several."""
        return called if called in self.numbers else self._others.get(_number(called))

    @cached_property
    def _others(self) -> dict[Id, Id | None]:
        """What images may be called besides: their ids as numbers, their files' names; None where it fits several."""
        found: dict[Id, Id | None] = {}
        for own, number in self.numbers.items():
            name = self.name(number) or ""
            last = name.rpartition("/")[2]
            for other in {_number(own), name, last, stem_and_ending(last)[0]}:
                # A name of digits alone is not told from a number.
                if isinstance(other, int) or not _NUMBER.fullmatch(other):
                    found[other] = own if found.get(other, own) == own else None
        return found


def _number(called: Id) -> Id:
    """Return the number that an id writes as text, any other id as it is."""
    match = _NUMBER.fullmatch(called) if isinstance(called, str) else None
    return int(match[1]) if match else called


def _joined(annotations: list[Any], images: _Images) -> tuple[dict[Id, list[Caption]], list[Record | BadRecord]]:
    """Return the captions of each listed image, and what belongs to none of them."""
    by_image: dict[Id, list[Caption]] = {}
    unlisted: dict[Id, tuple[list[int], list[Caption]]] = {}
    astray: list[Record | BadRecord] = []
    for number, annotation in enumerate(annotations):
        place = f"annotations[{number}]"
        if not isinstance(annotation, dict):
            astray.append(malformed(place, f"{place} is {kind_of(annotation)}, expected an object"))
            continue
        captions = captions_of(annotation, place)
        called = id_in(annotation.get("image_id"))
        if called is None:
            fault = fault_of(annotation, "image_id", "text or a whole number")
            astray.append(malformed(place, f"{place} {fault}", len(captions)))
        elif (own := images.find(called)) is not None:
            by_image.setdefault(own, []).extend(captions)
        else:
            numbers, lost = unlisted.setdefault(called, ([], []))
            numbers.append(number)
            lost.extend(captions)
    taken = set(map(str, images.numbers))
    return by_image, astray + [_unlisted(called, *found, taken) for called, found in unlisted.items()]


def _unlisted(called: Id, numbers: list[int], lost: list[Caption], taken: set[str]) -> BadRecord:
    named = ", ".join(f"annotations[{number}]" for number in numbers[:_NAMED])
    more = f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else ""
    detail = f"no listed image, or not one alone, has the image_id {called!r:.80} of {named}{more}"
    # The number 5 where the texts "5" and "05" are listed is neither, but is shown as the first.
    source_id = f"annotations[{numbers[0]}]" if str(called) in taken else str(called)
    taken.add(source_id)
    return bad(source_id, "unlisted-image", f"{detail}: {len(lost):,} captions", len(lost))


def _coco_record(
    places: ImagePlaces, images: _Images, number: int, by_image: dict[Id, list[Caption]], require: Collection[str]
) -> Record | BadRecord:
    entry, own, place = images.entries[number], images.id(number), f"images[{number}]"
    if not isinstance(entry, dict):
        return malformed(place, f"{place} is {kind_of(entry)}, expected an object")
    if own is None:
        return malformed(place, f"{place} {fault_of(entry, 'id', 'text or a whole number')}")
    first, name = images.numbers[own], images.name(number)
    if first != number and name is not None and name == images.name(first):
        return Record(source_id=str(own), captions=(), image=ImageFile(places.root, places.locate(name)))
    if first != number:
        # Under its place: under its id, it would stand in the way of the one that is kept.
        return bad(place, "duplicate-id", f"{place} has the id {own!r:.80}, as has images[{first}], which is kept")
    captions = tuple(by_image.get(own, ()))
    if name is None:
        return malformed(str(own), f"{place} {fault_of(entry, 'file_name', 'a file name')}", len(captions))
    if not captions and "text" in require:
        return bad(str(own), "no-captions", f"no annotation is of {place}, {name:.200}")
    return Record(source_id=str(own), captions=captions, image=ImageFile(places.root, places.locate(name)))


def id_in(value: Any) -> Id | None:
    """Return the id in a value: text or a whole number, also one that was written as 17.0; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def captions_of(entry: dict[str, Any], place: str) -> tuple[Caption, ...]:
    """Return the captions under an entry's `caption`, at least one; those that are none name its place."""
    if "caption" not in entry:
        return (Rejected("malformed-caption", f"{place} {fault_of(entry, 'caption', 'text')}"),)
    return captions_at(f"{place}:", entry["caption"]) or (
        Rejected("empty-caption", f"{place}: its caption is null or empty"),
    )


def malformed(source_id: str, detail: str, captions: int = 0) -> BadRecord:
    """Return an entry that is not as it must be; `captions` are lost with it."""
    return bad(source_id, "malformed-record", detail, captions)


def bad(source_id: str, reason: str, detail: str, captions: int = 0) -> BadRecord:
    """Return an entry that cannot be taken; `captions` are lost with it."""
    return BadRecord(source_id=source_id, rejected=Rejected(reason, detail), captions=captions)


def fault_of(entry: dict[str, Any], key: str, expected: str) -> str:
    """Say in what an entry's value is not what is expected."""
    return f"has no {key}, expected {expected}" if key not in entry else f"has a {key} that is {kind_of(entry[key])}"
