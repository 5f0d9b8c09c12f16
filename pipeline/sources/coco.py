"""COCO captions: `images[]` with `id` and `file_name`, `annotations[]` with `image_id` and `caption`.

Ids are joined as they stand, then as numbers, then by file names, where that leaves one image alone. What cannot be
joined is a record too, so that it is counted and listed: an annotation without an id, an image without annotations,
and the captions of an image that is not listed.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Final

from pipeline.sources.caption_values import kind_of
from pipeline.sources.entries import Id, bad, captions_of, fault_of, id_in, malformed
from pipeline.sources.files import stem_and_ending
from pipeline.sources.image_files import ImageFile
from pipeline.sources.image_places import ImagePlaces
from pipeline.sources.records import BadRecord, Caption, Record

_NUMBER: Final = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)
_NAMED: Final = 3
"""How many annotations a message names."""


def coco_records(content: dict[str, Any], places: ImagePlaces) -> list[Record | BadRecord]:
    """Return the records of a COCO captions document: those of its images, then what belongs to none."""
    images = _Images(content["images"])
    by_image, astray = _joined(content["annotations"], images)
    records = [_record(places, images, number, by_image) for number in range(len(images.entries))]
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


def _record(places: ImagePlaces, images: _Images, number: int, by_image: dict[Id, list[Caption]]) -> Record | BadRecord:
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
    if not captions:
        return bad(str(own), "no-captions", f"no annotation is of {place}, {name:.200}")
    return Record(source_id=str(own), captions=captions, image=ImageFile(places.root, places.locate(name)))
