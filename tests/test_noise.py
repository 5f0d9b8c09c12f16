"""Wrong pairs on purpose: both published rules, released index files, and what a store keeps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import small_scenes

from pipeline.extract import extract
from pipeline.sources.noise import noisy_images, released_owners
from stores import SourceError, Store, StoreError
from stores.parameters import Noise
from train.data.pairing import Pairing

IMAGES, EACH = 200, 5
OWN = np.repeat(np.arange(IMAGES), EACH)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.8, 1.0])
def test_by_image_all_captions_of_an_image_move_together(ratio: float) -> None:
    paired = noisy_images(IMAGES, EACH, ratio, "image", 0)
    by_image = paired.reshape(IMAGES, EACH)
    assert (by_image == by_image[:, :1]).all()
    assert sorted(by_image[:, 0].tolist()) == list(range(IMAGES)), "a permutation"
    chosen = int(ratio * IMAGES)
    assert chosen - 10 <= int((by_image[:, 0] != np.arange(IMAGES)).sum()) <= chosen
    assert paired.tolist() == noisy_images(IMAGES, EACH, ratio, "image", 0).tolist()
    if ratio:
        assert paired.tolist() != noisy_images(IMAGES, EACH, ratio, "image", 1).tolist()


def test_other_noise_is_refused() -> None:
    for arguments in ((-0.5, "image", 0), (1.5, "image", 0), (0.5, "images", 0), (0.5, "caption", -1)):
        with pytest.raises(ValueError, match="expected a ratio of 0 to 1"):
            noisy_images(IMAGES, EACH, *arguments)  # type: ignore[arg-type]


def test_by_caption_an_image_keeps_some_of_its_own() -> None:
    paired = noisy_images(IMAGES, EACH, 0.4, "caption", 0)
    assert sorted(paired.tolist()) == OWN.tolist(), "each image as often as before"
    moved = (paired != OWN).reshape(IMAGES, EACH).sum(axis=1)
    assert 380 <= moved.sum() <= 400
    assert len(set(moved.tolist())) > 3, "images lose different numbers of captions"


def test_released_index_files_are_read_by_either_length(tmp_path: Path) -> None:
    images = np.random.default_rng(0).permutation(IMAGES)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "captions.npy", images[OWN].astype(np.int32))
    for name in ("images", "captions"):
        assert released_owners(tmp_path / f"{name}.npy", OWN, IMAGES).tolist() == images[OWN].tolist()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (np.arange(IMAGES - 1), "200 or 1000 whole numbers"),
        (np.arange(IMAGES) * 0.5, "200 or 1000 whole numbers"),
        (np.zeros(IMAGES, dtype=int), "each image once"),
        (np.arange(IMAGES * EACH), "as often as it has captions"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
    ids=["length", "fractions", "repeated", "beyond", "pickled"],
)
def test_other_index_files_are_refused(tmp_path: Path, content: np.ndarray, expected: str) -> None:
    np.save(tmp_path / "index.npy", content, allow_pickle=True)
    with pytest.raises(SourceError, match=expected):
        released_owners(tmp_path / "index.npy", OWN, IMAGES)
    whole = (tmp_path / "index.npy").read_bytes()
    for damaged in (whole[:50], whole.replace(b")", b" "), b"PK" + whole):
        (tmp_path / "index.npy").write_bytes(damaged)
        with pytest.raises(SourceError, match="cannot be read"):
            released_owners(tmp_path / "index.npy", OWN, IMAGES)


def test_a_store_keeps_the_true_pairs_beside_the_wrong_ones(tmp_path: Path) -> None:
    """Noise comes and goes with the parameters, and costs no other file; a person's own is left alone."""
    wanted, path = small_scenes(train=16, val=4, test=4), tmp_path / "store"
    plain = extract(wanted, path).manifest
    assert Store.open(path).pairing is None
    noisy = small_scenes(train=16, val=4, test=4)
    object.__setattr__(noisy.data, "noise", Noise(ratio=0.5))
    made = extract(noisy, path)
    assert set(made.made) == {"pairing.arrow", "manifest.json"}
    store = Store.open(path)
    assert store.captions["sample"].to_pylist() == sorted(store.captions["sample"].to_pylist())
    wrong = Pairing(store, "train").wrong()
    assert wrong is not None
    assert 20 <= int(wrong.sum()) <= 40
    others = Pairing(store, "val").wrong()
    assert others is not None
    assert not others.any()
    assert not extract(noisy, path).made, "the second time nothing is made"
    extract(wanted, path)
    assert not (path / "pairing.arrow").exists()
    assert Store.open(path).manifest.files == plain.files
    (path / "pairing.arrow").write_text("mine")
    with pytest.raises(StoreError, match=r"pairing\.arrow: the store's own file belongs there"):
        extract(noisy, path)
    assert (path / "pairing.arrow").read_text() == "mine"
