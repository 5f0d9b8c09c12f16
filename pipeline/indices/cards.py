"""The card beside an index: what the index was made from, what it is, what was measured, and checksums of both.

An index is whole when its card is intact, names these features and this kind, and the checksum of the index file holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stores.atomic import write_json
from stores.digests import file_digest, value_digest

INDEX_FORMAT: Final = 2


@dataclass(frozen=True, kw_only=True)
class IndexOrigin:
    """What an index is made from; an index of another origin is stale."""

    format: int = INDEX_FORMAT
    features: str
    """Digest of the feature parts' checksums, in order."""
    kind: str
    """faiss.index_factory string; "Flat" is exact."""
    min_recall: float | None
    """What the search was widened for; None for an exact index, which has no width."""


def write_card(path: Path, origin: IndexOrigin, sha256: str, measured: dict[str, Any]) -> None:
    """Write the card of the index file whose checksum is `sha256`."""
    card = {**asdict(origin), "sha256": sha256, **measured}
    write_json(path, {**card, "card": value_digest(card)})


def index_fault(path: Path, card_path: Path, origin: IndexOrigin) -> tuple[str | None, str]:
    """Return why the index must be built (again), or None if it is whole; and then its checksum."""
    if not path.is_file() or not card_path.is_file():
        return "missing", ""
    card = read_card(card_path)
    if card is None:
        return "damaged: card", ""
    for name, wanted in asdict(origin).items():
        if card.get(name) != wanted:
            return f"stale: other {name.replace('_', ' ')}", ""
    digest = file_digest(path)
    return (None, digest) if card.get("sha256") == digest else ("damaged: checksum", "")


def read_card(path: Path) -> dict[str, Any] | None:
    """Return a card that is intact to the byte, else None."""
    try:
        text = path.read_text(encoding="utf-8")
        card: dict[str, Any] = json.loads(text)
        own = card.pop("card")
        same = text == json.dumps({**card, "card": own}, indent=2, ensure_ascii=False) + "\n"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return card if same and own == value_digest(card) else None
