"""What several devices must agree on before they share the work: the same teachers, and batches that fit everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from models.teachers import TeacherCard
from stores import TeacherError


def agree(described: Sequence[Sequence[tuple[TeacherCard, int]]]) -> list[tuple[TeacherCard, int]]:
    """Return the card of each teacher and the smallest of its batch sizes, from what each device says of all teachers.

    Raises:
        TeacherError: devices have loaded a teacher differently, so that a store would hold two kinds of features.
    """
    agreed = []
    for teacher in zip(*described, strict=True):
        cards, sizes = zip(*teacher, strict=True)
        if len(set(cards)) > 1:
            raise TeacherError(
                f"The devices load {cards[0].spec} differently (fingerprints "
                f"{', '.join(sorted({card.fingerprint[:12] for card in cards}))}). Give all the same weights and "
                f"versions, and set extract.precision where their hardware differs."
            )
        agreed.append((cards[0], min(sizes)))
    return agreed
