"""Hostile captions, ids, labels and file names; all hostile input at once, and nothing written outside the store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hostile_images import (
    encoded,
    gif_claiming,
    noise,
    plain,
    png_claiming,
    png_of_16_bits,
    with_chunk,
    with_hidden_colour,
)
from test_ingest import content, entry, jpeg, karpathy, parameters

from pipeline.acceptance import MAX_ASPECT, MAX_CAPTION, MAX_NAME, MAX_SCANS, check_caption, check_name, storable
from pipeline.extract import extract
from pipeline.sources import Rejected
from stores import Store
from stores.images import MAX_PIXELS
from stores.layout import Layout

# Captions, ids and labels

KEPT_CAPTIONS = {
    "right to left": "כלב רץ בפארק, والقط ينام",
    "mixed with marks of direction": "a dog \u2067כלב\u2069 runs\u200f",
    "emoji": "two 😀 and 🇩🇪 and 👩🏽‍🚀 and 👨‍👩‍👧‍👦",
    "only an emoji": "🫠",
    "combining marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G and e\u0301",
    "a line break and a tab": "first\nsecond\tthird",
    "terminal escapes": "\x1b[2J\x1b]0;title\x07 a cat",
    "replacement character": "caf\ufffd",
    "format strings and markup": "{0} %s ${HOME} [bold]a[/bold] <b>b</b> '; DROP TABLE captions; --",
    "outside the basic plane": "𝒶 𝕔𝕒𝕥 and 𠜎",
    "not a character": "\ufffe\uffff",
    "the longest": "x" * MAX_CAPTION,
    "a character that Unicode has not given yet": "\U000e0fff",
}

REJECTED_CAPTIONS = {
    "": "empty-caption",
    " \t\n\u00a0\u2003\u3000": "empty-caption",
    "\u200b\u200d\ufeff\u2060": "empty-caption",
    " \u200b \u200e\u202e\xad ": "empty-caption",
    "\0": "empty-caption",
    "a dog\0 rm -rf": "nul-in-caption",
    "x" * (MAX_CAPTION + 1): "caption-too-long",
    "word " * 200_000: "caption-too-long",
    "\0" + "x" * 2_000_000: "caption-too-long",
    "cut \ud83d": "not-unicode",
    "\ude00 behind": "not-unicode",
}


@pytest.mark.parametrize("name", KEPT_CAPTIONS)
def test_captions_that_are_kept_unchanged(name: str) -> None:
    caption = KEPT_CAPTIONS[name]
    assert check_caption(f" \n{caption}\t", 0) == caption


@pytest.mark.parametrize("caption", REJECTED_CAPTIONS, ids=range(len(REJECTED_CAPTIONS)))
def test_captions_that_are_quarantined(caption: str) -> None:
    with pytest.raises(Rejected) as caught:
        check_caption(caption, 3)
    assert caught.value.reason == REJECTED_CAPTIONS[caption]
    assert caught.value.detail.startswith("caption 3 ")
    assert len(caught.value.detail) < 500
    assert caught.value.detail.replace("…", "").replace("−", "").isprintable()
    caught.value.detail.encode()


def test_a_long_caption_s_message_says_what_to_do() -> None:
    with pytest.raises(Rejected, match=r"caption 0 has 1,000,000 characters, at most 100,000 .*split it"):
        check_caption("x" * 1_000_000, 0)


KEPT_NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a.b.c.jpg",
    "a/b/c",
    "C:\\temp\\x",
    "CON",
    "~",
    "-rf",
    "a b",
    "😀",
    "\x1b[2J",
    "x" * MAX_NAME,
]

REJECTED_NAMES = {
    "id\0.jpg": "nul-in-id",
    "x" * (MAX_NAME + 1): "id-too-long",
    "half \ud83d": "not-unicode",
}


def test_names_are_data() -> None:
    for name in KEPT_NAMES:
        check_name(name, "id")
        assert storable(name) == name
    for name, expected in REJECTED_NAMES.items():
        with pytest.raises(Rejected) as caught:
            check_name(name, "id")
        assert caught.value.reason == expected
        assert len(storable(name).encode()) <= MAX_NAME


# All of it at once


HOSTILE_IMAGES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "bomb.png": (lambda: png_claiming(5_000, 5_000), "too-many-pixels"),
    "bomb.gif": (lambda: gif_claiming((16, 16), (65_535, 65_535)), "too-many-pixels"),
    "texts.png": (
        lambda: with_chunk(encoded(noise(), "PNG"), b"zTXt", b"C\0\0" + zlib.compress(bytes(2**24))),
        "unreadable-image",
    ),
    "dot.png": (lambda: encoded(plain("red", size=(1, 1)), "PNG"), None),
    "thin.png": (lambda: encoded(plain("red", size=(1, 5_000)), "PNG"), "extreme-aspect"),
    "ink.jpg": (lambda: encoded(noise().convert("CMYK"), "JPEG"), None),
    "palette.png": (lambda: encoded(with_hidden_colour("P"), "PNG", transparency=bytes([255, 128, 0])), None),
    "deep.png": (lambda: png_of_16_bits(np.full((9, 9, 1), 4660, np.uint16)), None),
    "moving.webp": (lambda: encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]), None),
    "moving.gif": (lambda: encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]), None),
    "cut.jpg": (lambda: encoded(noise(), "JPEG")[:-300], "truncated-image"),
    "page.jpg": (lambda: b"<html>not found</html>", "unreadable-image"),
    "wrong-name.jpg": (lambda: encoded(noise(), "GIF"), None),
}

OUTSIDE_NAMES = {
    "../outside.jpg": "path-outside",
    "/etc/hostname": "path-outside",
    "a/../../outside.jpg": "path-outside",
    "x" * 5_000 + ".jpg": "unreadable-file",
    "nul\0.jpg": "unreadable-file",
    "half\ud83d.jpg": "unreadable-file",
    ".": "unreadable-file",
}


def hostile_data_set(folder: Path) -> tuple[Path, dict[str, str | None]]:
    """Write every image, caption, id and file name above; return the captions file, and why each id is rejected."""
    folder.mkdir(parents=True)
    jpeg(folder / "good.jpg")
    jpeg(folder.parent / "outside.jpg")
    entries, expected = [], {}

    def add(source_id: str, name: str, why: str | None) -> None:
        entries.append(entry(0, name=name) | {"cocoid": source_id})
        expected[source_id] = why

    for name, (make, why) in HOSTILE_IMAGES.items():
        (folder / name).write_bytes(make())
        add(name, name, why)
    for name in [*KEPT_NAMES, *REJECTED_NAMES, str(folder.parent / "written"), "../../../written"]:
        add(name, "good.jpg", REJECTED_NAMES.get(name))
    for name, why in OUTSIDE_NAMES.items():
        add(f"file {name}", name, why)
    entries.append({"cocoid": "no file \ud83d", "split": "train"})
    expected["no file \ud83d"] = "malformed-record"
    captions = [*KEPT_CAPTIONS.values(), *REJECTED_CAPTIONS]
    entries.append(entry(0, *captions, name="good.jpg") | {"cocoid": "many captions"})
    expected["many captions"] = None
    return karpathy(folder, entries), expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_all_of_it_becomes_a_store_and_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected = hostile_data_set(tmp_path / "a" / "b" / "set")
    root = tmp_path / "a" / "b" / "store"
    elsewhere = tmp_path / "a" / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    files, paths = content(tmp_path), set(tmp_path.rglob("*"))

    extract(parameters(str(source), bad=1.0, merge="none", shard_size=7, image_batch=8, text_batch=8), root)

    # No file outside, and none inside that is named after a stranger's word.
    added = set(tmp_path.rglob("*")) - paths
    assert {path for path in added if not path.is_relative_to(root)} == set()
    assert {name: data for name, data in content(tmp_path).items() if name in files} == files
    assert not {name for path in added for name in (path.name, path.stem)} & set(expected)

    store = Store.open(root)
    kept = store.samples["source_id"].to_pylist()
    assert kept == [name for name, why in expected.items() if why is None]
    lines = [json.loads(line) for line in Layout(root).quarantine.read_text().splitlines()]
    quarantined = {line["source_id"]: line["reason"] for line in lines if "caption" not in line}
    assert quarantined == {storable(name): why for name, why in expected.items() if why}
    assert store.captions["text"].to_pylist()[-len(KEPT_CAPTIONS) :] == list(KEPT_CAPTIONS.values())
    reasons = [line["reason"] for line in lines if "caption" in line]
    assert reasons == list(REJECTED_CAPTIONS.values())
    for teacher, rows in (("hog-color", len(kept)), ("minilm", len(store.captions))):
        assert np.isfinite(store.features(teacher).gather(np.arange(rows))).all()

    shards = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    seen = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["json"]["source_id"] for sample in seen] == kept
    members = {key for sample in seen for key in sample if not key.startswith("__")}
    assert members == {"jpg", "png", "webp", "gif", "json"}


def test_the_table_names_every_reason() -> None:
    """docs/hostile-input.md and the code agree on the reasons' names."""
    table = (Path(__file__).resolve().parents[1] / "docs" / "hostile-input.md").read_text()
    used = {why for _, why in HOSTILE_IMAGES.values()} | set(OUTSIDE_NAMES.values())
    used |= set(REJECTED_CAPTIONS.values()) | set(REJECTED_NAMES.values())
    used |= {"too-many-scans", "unknown-format", "no-captions", "duplicate-id", "label-too-long", "nul-in-label"}
    for why in used - {None}:
        assert f"`{why}`" in table, why
    for limit in (MAX_ASPECT, MAX_SCANS, MAX_CAPTION, MAX_NAME, MAX_PIXELS):
        assert f"{limit:,}" in table, limit
