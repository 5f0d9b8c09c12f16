"""A shard's receipt: what it was made from, its checksum, and what was rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pydantic
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass as checked_dataclass

from stores.atomic import write_json
from stores.digests import value_digest
from stores.errors import DamagedStoreError
from stores.manifest import Sha256


@checked_dataclass(frozen=True, kw_only=True)
class Quarantined:
    """One rejected sample, or (with `caption`) one rejected caption of a sample that stays."""

    source_id: str
    split: str
    reason: str
    detail: str
    caption: int | None = None


@checked_dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a shard was made from and what came of it; a tar without its receipt is made again."""

    fingerprint: Sha256
    sha256: Sha256
    bytes: NonNegativeInt
    samples: NonNegativeInt
    captions: NonNegativeInt
    quarantined: tuple[Quarantined, ...]
    checksum: str = ""
    """Of all the rest, so that a receipt that was damaged is not believed."""

    def computed_checksum(self) -> str:
        values = _RECEIPT.dump_python(self, mode="json")
        return value_digest({name: value for name, value in values.items() if name != "checksum"})


_RECEIPT: Final = pydantic.TypeAdapter(Receipt)


def read_receipt(path: Path) -> Receipt:
    """Read and check the receipt of a shard."""
    try:
        receipt = _RECEIPT.validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise DamagedStoreError(f"cannot be read ({str(error).splitlines()[0]})", path=path) from None
    if receipt.checksum != receipt.computed_checksum():
        raise DamagedStoreError("its content does not match its checksum", path=path)
    return receipt


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write the receipt of a shard, with its checksum."""
    signed = replace(receipt, checksum=receipt.computed_checksum())
    write_json(path, _RECEIPT.dump_python(signed, mode="json"))
