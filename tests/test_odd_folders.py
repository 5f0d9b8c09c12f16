"""Folders of images as people have them: texts in another folder, texts that hold no caption."""

from __future__ import annotations

from pathlib import Path

from test_odd_tars import IMAGE, faults, samples
from test_sources import details, opened


def test_a_folder_says_where_its_texts_are(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/b.jpg", "texts/a.txt", "texts/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE if name.endswith("jpg") else b"one\ntwo")
    source = opened(str(tmp_path))
    assert [(record.rejected.reason, record.captions) for record in source.records("train")] == [
        *[("no-captions", 0)] * 2,
        *[("missing-file", 2)] * 2,
    ]
    told = ["images/a.jpg and texts/a.txt stand in different folders: put each text" in one for one in details(source)]
    assert told == [True] * 4
    (tmp_path / "texts" / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "texts" / "b.txt").unlink()
    (fault, _) = faults(tmp_path)
    assert "images/a.jpg has no caption; expected a .txt of its name" in fault
    assert "folder" not in fault.removeprefix(str(tmp_path))


def test_texts_of_a_folder_that_belong_to_an_image_and_hold_no_caption(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.caption", "a.url.txt", "a.b.seen.txt", "a-1.txt", "b.jpg", "b.json", "c.jpg", "c.json"):
        (tmp_path / name).write_bytes(IMAGE if name.endswith("jpg") else b"told")
    (tmp_path / "b.json").write_bytes(b'{"url": "x"}')
    found = samples(tmp_path, format="folder")
    bad = {"a-1.txt": "missing-file", "b.jpg": "no-captions", "c.jpg": "malformed-record"}
    assert found == {"a.jpg": ("told",), **bad}
    assert "c.jpg has a .json that is none" in faults(tmp_path)[2]
