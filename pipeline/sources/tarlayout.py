"""Why a sample of a tar lacks its image or its captions, as far as the rest of the tar tells."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from pipeline.sources.files import SourceFile
from pipeline.sources.image_endings import IMAGE_ENDINGS
from pipeline.sources.sidecars import IN_DIFFERENT_FOLDERS
from pipeline.sources.tarmembers import Damaged, Member, tar_members

TEXT_KINDS: Final = ("txt", "json", "caption", "text")
_MOST_NAMESAKES: Final = 100


class TarFinding(NamedTuple):
    """What a tar shows: the reason's name, unless the sample's own reason says it; and words, which may be none."""

    reason: str = ""
    words: str = ""


def tar_layout(
    file: SourceFile, stream: io.BufferedReader, members: Sequence[Member], wanted: Sequence[str]
) -> TarFinding:
    """Look through a tar for what the `members` of one key lack: one of the `wanted` kinds.

    Only that key is looked for, so that memory does not grow with the tar.
    """
    first, own = members[0], {member.offset for member in members}
    opposite = TEXT_KINDS if wanted is IMAGE_ENDINGS else IMAGE_ENDINGS
    found = False
    namesakes: dict[str, Member] = {}
    whole: set[str] = set()
    with suppress(Damaged):
        for member in tar_members(file, stream):
            is_wanted = member.kind in wanted
            if not member.key or member.offset in own or not (is_wanted or member.kind in opposite):
                continue
            found |= is_wanted
            if is_wanted and member.key == first.key:
                return _apart(first, member)
            if _file_name(member) == _file_name(first) and len(namesakes) + len(whole) < _MOST_NAMESAKES:
                namesakes.setdefault(member.key, member) if is_wanted else whole.add(member.key)
    elsewhere = next((member for key, member in namesakes.items() if key not in whole), None)
    if elsewhere:
        return TarFinding(words=f"; {first.name} and {elsewhere.name} {IN_DIFFERENT_FOLDERS}")
    return TarFinding(words="" if found else "; nor is there one in all of the tar")


def _file_name(member: Member) -> str:
    return member.key.rpartition("/")[2]


def _apart(one: Member, other: Member) -> TarFinding:
    return TarFinding(
        "not-adjacent",
        f"is a key whose members are not adjacent (such as {one.name} at byte {one.offset:,} and {other.name} at byte "
        f"{other.offset:,}): unpack the tar and sort it, tar --sort=name -cf NEW.tar FOLDER",
    )
