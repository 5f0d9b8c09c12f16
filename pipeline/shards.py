"""Shards: tar files in WebDataset's layout, each a pure function of a run of the source's records.

A shard is made from a fixed run of records, whatever becomes of the others; so shards can be made, resumed and
repaired one by one, and the same source gives the same bytes. Beside each tar lies its receipt, written after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Annotated, Any, Final

import pydantic
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass as checked_dataclass

from pipeline.acceptance import CheckedImage, check_caption, check_image, check_name, storable
from pipeline.receipts import Quarantined, Receipt, read_receipt, write_receipt
from pipeline.sources import BadRecord, Record, Rejected
from pipeline.sources.records import NoImage
from stores.atomic import atomic_path
from stores.digests import file_digest, value_digest
from stores.errors import StoreError
from stores.json_objects import parsed_object
from stores.layout import Layout
from stores.manifest import Sha256

SHARD_FORMAT: Final = 2
_RUN: Final = 8
_RUNS_AHEAD: Final = 16
"""How many runs of images are read and checked ahead of the tar's writer."""
_WRITTEN_AT_ONCE: Final = 1 << 20
"""Bytes: each write waits for the threads that decode, and tarfile makes one of every 10 KB."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A run of one split's records that becomes one shard; `first_key` numbers its first record over all splits."""

    name: str
    split: str
    first_key: int
    records: Sequence[Record | BadRecord]
    max_pixels: int
    require: frozenset[str]
    """What each sample must have: image, text."""

    def caption_counts(self) -> list[int]:
        """Return how many captions each record has, good and bad ones, as far as its source knows."""
        return [len(r.captions) if isinstance(r, Record) else r.captions for r in self.records]

    def fingerprint(self, readers: ThreadPoolExecutor) -> str:
        """Return what changes with everything that the shard's bytes depend on, but the images' bytes themselves.

        Ask before the images are read: an image that changes later then shows in the next run.
        """
        identities = list(chain.from_iterable(readers.map(_identities, _runs(self.records))))
        lacking = sorted({"image", "text"} - self.require)  # nothing in most stores, also in those made before it was
        return value_digest([SHARD_FORMAT, self.name, self.first_key, self.max_pixels, identities, *lacking])


def _identities(records: Sequence[Record | BadRecord]) -> list[list[Any]]:
    return [
        [record.source_id, record.image and record.image.identity(), list(map(str, record.captions)), record.label]
        if isinstance(record, Record)
        else [record.source_id, str(record.rejected)]
        for record in records
    ]


@checked_dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample as its shard holds it: the `.json` member, and where in the tar the image's bytes lie, if it has one."""

    key: Annotated[str, pydantic.StringConstraints(pattern=r"^\d+$")]
    source_id: str
    image_sha256: Sha256 | None
    width: int | None
    height: int | None
    captions: list[str]
    label: str | None
    image_offset: NonNegativeInt = 0
    image_bytes: NonNegativeInt = 0


_CheckedRecord = tuple[Record, CheckedImage | None]


def shard_fault(name: str, fingerprint: str, layout: Layout) -> str | None:
    """Return why the shard must be made (again), or None if it is whole and made from records of this fingerprint."""
    tar, receipt_path = layout.shard(name), layout.shard_receipt(name)
    if not receipt_path.exists() or not tar.exists():
        return "missing"
    try:
        receipt = read_receipt(receipt_path)
    except StoreError:
        return "damaged: receipt"
    if receipt.fingerprint != fingerprint:
        return "stale: other records"
    if tar.stat().st_size != receipt.bytes or file_digest(tar) != receipt.sha256:
        return "damaged: checksum"
    return None


def make_shard(shard: PlannedShard, fingerprint: str, layout: Layout, readers: ThreadPoolExecutor) -> Iterator[int]:
    """Write the shard's tar and receipt, yielding 1 for each record that is done."""
    keeper = _Keeper(shard)
    samples = captions = 0
    tar = layout.shard(shard.name)
    with atomic_path(tar) as temporary:
        file = _DigestedFile(temporary)
        # Closed before its stream is, even where the disk is full: it would complain of that for ever after.
        with io.BufferedWriter(file, _WRITTEN_AT_ONCE) as stream, closing(_tar_writer(stream)) as writer:
            for number, outcome in enumerate(_checked(shard, readers)):
                if kept := keeper.members(number, outcome):
                    writer.write(kept[0])
                    samples, captions = samples + 1, captions + kept[1]
                yield 1
        receipt = Receipt(
            fingerprint=fingerprint,
            sha256=file.digest.hexdigest(),
            bytes=temporary.stat().st_size,
            samples=samples,
            captions=captions,
            quarantined=tuple(keeper.quarantined),
        )
        # Before its tar is there: a kill in between leaves a checksum that does not hold, and no tar of unknown origin.
        write_receipt(receipt, layout.shard_receipt(shard.name))


class _DigestedFile(io.FileIO):
    """A file that is written from its start to its end, and hashed meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.digest.update(memoryview(data)[:count])
        return count


def _tar_writer(stream: IO[bytes]) -> Any:
    import webdataset  # here, since it loads torch, and whoever reads a shard needs neither

    return webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="", format=tarfile.USTAR_FORMAT)


def _checked(shard: PlannedShard, readers: ThreadPoolExecutor) -> Iterator[_CheckedRecord | Rejected]:
    """Read and check the images on threads, a bounded number ahead, in the records' order."""
    runs = iter(_runs(shard.records))

    def check(run: Sequence[Record | BadRecord]) -> list[_CheckedRecord | Rejected]:
        return [_check(record, shard.max_pixels, shard.require) for record in run]

    waiting = deque(readers.submit(check, run) for run in islice(runs, _RUNS_AHEAD))
    while waiting:
        yield from waiting.popleft().result()
        waiting.extend(readers.submit(check, run) for run in islice(runs, 1))


def _runs(records: Sequence[Record | BadRecord]) -> Iterator[Sequence[Record | BadRecord]]:
    """Cut records into what one thread takes at a time: handing over each by itself costs as much as a small image."""
    return (records[start : start + _RUN] for start in range(0, len(records), _RUN))


def _check(record: Record | BadRecord, max_pixels: int, require: frozenset[str]) -> _CheckedRecord | Rejected:
    if isinstance(record, BadRecord):
        return record.rejected
    try:
        if record.image is None:
            raise NoImage("no-image", "it has no image")
        return record, check_image(record.image.read(), max_pixels)
    except NoImage as rejected:
        return rejected if "image" in require else (record, None)
    except Rejected as rejected:
        return rejected


class _Keeper:
    """Turns checked records of a shard into members of its tar, and notes what is rejected."""

    def __init__(self, shard: PlannedShard) -> None:
        self._shard = shard
        self.quarantined: list[Quarantined] = []

    def members(self, number: int, outcome: _CheckedRecord | Rejected) -> tuple[dict[str, Any], int] | None:
        """Return a good record's members and its number of captions; None of a rejected one."""
        try:
            if isinstance(outcome, Rejected):
                raise outcome
            record, image = outcome
            check_name(record.source_id, "id")
            check_name(record.label or "", "label")
            captions = self._captions(number, record)
        except Rejected as rejected:
            self._reject(number, rejected)
            return None
        facts = {
            "source_id": record.source_id,
            "image_sha256": image and image.sha256,
            "width": image and image.width,
            "height": image and image.height,
            "captions": captions,
            "label": record.label,
        }
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        key = f"{self._shard.first_key + number:09d}"
        picture = {image.extension: image.data} if image else {}
        return {"__key__": key, **picture, "json": text.encode()}, len(captions)

    def _captions(self, number: int, record: Record) -> list[str]:
        captions = []
        for position, caption in enumerate(record.captions):
            try:
                if isinstance(caption, Rejected):
                    raise caption
                captions.append(check_caption(caption, position))
            except Rejected as rejected:
                self._reject(number, rejected, position)
        if not captions and "text" in self._shard.require:
            raise Rejected("no-captions", f"none of {len(record.captions)} captions holds text")
        return captions

    def _reject(self, number: int, rejected: Rejected, caption: int | None = None) -> None:
        self.quarantined.append(
            Quarantined(
                source_id=storable(self._shard.records[number].source_id),
                split=self._shard.split,
                reason=rejected.reason,
                detail=storable(rejected.detail),
                caption=caption,
            )
        )


def read_shard(tar: Path) -> Iterator[StoredSample]:
    """Yield the samples that a shard holds, in order, with the places of their images."""
    with tarfile.open(tar, "r:") as archive:
        for key, group in groupby(archive, key=lambda member: member.name.partition(".")[0]):
            members = {member.name.partition(".")[2]: member for member in group}
            json_member = members.pop("json", None)
            stream = json_member and archive.extractfile(json_member)
            if not stream or len(members) > 1:
                raise StoreError(f"{tar}: the sample {key} is not one image at most and one .json.")
            image = next(iter(members.values()), None)
            facts = parsed_object(stream.read())
            offset, size = (image.offset_data, image.size) if image else (0, 0)
            yield StoredSample(key=key, image_offset=offset, image_bytes=size, **facts)
