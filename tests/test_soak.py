"""Long proofs, run by `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import content
from interrupted import kill_until_whole

from stores import Store

SCENES = ["-S", "data.scenes={train: 400, val: 30, test: 50}", "-S", "extract.shard_size=64", "-S", "extract.window=64"]


@pytest.mark.soak
def test_killed_at_fifty_moments_the_store_is_byte_identical(tmp_path: Path) -> None:
    whole, cut = kill_until_whole(tmp_path, 50, *SCENES)
    assert content(cut) == content(whole)
    assert len(Store.open(cut).samples) == 480
