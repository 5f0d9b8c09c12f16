"""Tars as people have them, and folders of the same: which member is the caption, system files, members apart."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from test_sources import details, listed, opened, png, tar_bytes

MAKE_CASES = SHARED.parent / "cases" / "make_tars.py"
Members = list[tuple[str, bytes]]
IMAGE = png(3)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAKE_CASES.is_file():
        pytest.skip("needs the odd tars of ../shared/cases, which are not part of the project")
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, MAKE_CASES, folder], check=True)
    return folder


def samples(path: Path, **settings: Any) -> dict[str, tuple[Any, ...] | str]:
    """Each record's captions, or why it is bad; no id comes twice."""
    found = listed(opened(str(path), **settings))
    assert len({source_id for source_id, *_ in found}) == len(found)
    return {source_id: rest if isinstance(rest, str) else captions for source_id, captions, rest in found}


def in_tar(folder: Path, members: Members, **settings: Any) -> dict[str, tuple[Any, ...] | str]:
    (folder / "t.tar").write_bytes(tar_bytes(members))
    return samples(folder / "t.tar", **settings)


def faults(path: Path) -> list[str]:
    return details(opened(str(path)))


@pytest.mark.parametrize("name", ["dr_url", "dr_txt", "mac"])
def test_cases_whose_captions_are_plain(cases: Path, name: str) -> None:
    expected = [(f"a plain tile, number {number}",) for number in range(10)]
    assert list(samples(cases / f"{name}.tar").values()) == expected


def test_case_whose_members_are_not_adjacent(cases: Path) -> None:
    assert list(samples(cases / "notadjacent.tar").values()) == ["not-adjacent"] * 20
    found = faults(cases / "notadjacent.tar")
    assert len(found) == 20
    for fault in found:
        assert "a key whose members are not adjacent" in fault
        assert "tar --sort=name" in fault


JSON = json.dumps({"caption": "in json"}).encode()
CHOSEN: dict[str, tuple[Members, tuple[str, ...]]] = {
    "txt before json": ([("jpg", IMAGE), ("json", JSON), ("txt", b"in txt")], ("in txt",)),
    "broken json beside txt": ([("jpg", IMAGE), ("json", b"{"), ("txt", b"in txt")], ("in txt",)),
    "empty txt": ([("jpg", IMAGE), ("json", JSON), ("txt", b"\n")], ("in json",)),
    "other texts": ([("alt.txt", b"x"), ("jpg", IMAGE), ("json", JSON), ("url.txt", b"http://x")], ("in json",)),
    "other jsons": ([("jpg", IMAGE), ("ocr.json", b"{"), ("paug.json", b"[]"), ("txt", b"in txt")], ("in txt",)),
    "masks": ([("depth.png", b"x"), ("jpg", IMAGE), ("mask.png", b"x"), ("txt", b"in txt")], ("in txt",)),
    "the only image": ([("cls", b"3"), ("input.jpg", IMAGE), ("npz", b"x"), ("txt", b"in txt")], ("in txt",)),
    "a dot in the name": ([("v2.jpg", IMAGE), ("v2.txt", b"of v2"), ("v2.url.txt", b"http://x")], ("of v2",)),
    "a dot in the name, and a mask": ([("v2.jpg", IMAGE), ("v2.mask.png", b"x"), ("v2.txt", b"of v2")], ("of v2",)),
    "a dot in the json's name": ([("v2.jpeg", IMAGE), ("v2.json", JSON)], ("in json",)),
    "upper case": ([("JPEG", IMAGE), ("TXT", b"in txt")], ("in txt",)),
    "caption": ([("Caption", b"one\ntwo\n"), ("jpg", IMAGE), ("syn.txt", b"x")], ("one", "two")),
    "caption.txt": ([("caption.txt", b"told"), ("jpg", IMAGE), ("json", b'{"url": "x"}')], ("told",)),
    "captions of json": ([("jpg", IMAGE), ("json", b'{"caption": null, "captions": ["a", "b"]}')], ("a", "b")),
    "text of json": ([("jpg", IMAGE), ("json", b'{"caption": NaN, "Text": "a"}')], ("a",)),
    "a list's spelling": (
        [("jpg", IMAGE), ("json", b'{"caption": "[\'a dog\', \\"a dog\'s\\"]"}')],
        ("a dog", "a dog's"),
    ),
    "a list alone": ([("jpg", IMAGE), ("json", b'[{"raw": "a"}, {"raw": "b"}]')], ("a", "b")),
    "five lines": ([("jpg", IMAGE), ("txt", b"1\r\n2\r\n3\r\n\r\n4\r\n5\r\n")], ("1", "2", "3", "4", "5")),
    "lines that json holds whole": (
        [("jpg", IMAGE), ("json", b'{"caption": "a dog\\nruns\\n"}'), ("txt", b"a dog\nruns")],
        ("a dog\nruns\n",),
    ),
    "lines that json holds as a list": (
        [("jpg", IMAGE), ("json", b'{"caption": ["a", "b"]}'), ("txt", b"a\nb\n")],
        ("a", "b"),
    ),
    "lines unlike json's": ([("jpg", IMAGE), ("json", b'{"caption": "a"}'), ("txt", b"a\nb")], ("a", "b")),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_which_member_is_the_caption(tmp_path: Path, name: str) -> None:
    members, captions = CHOSEN[name]
    found = in_tar(tmp_path, [(f"{key}.{ending}", data) for key in ("a", "b/a", "c") for ending, data in members])
    assert found == dict.fromkeys(("a", "b/a", "c"), captions)
    assert {image for _, _, image in listed(opened(str(tmp_path / "t.tar")))} == {IMAGE}


@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in ("masks", "the only image")])
def test_a_tar_unpacked_is_a_folder_of_the_same_captions(tmp_path: Path, name: str) -> None:
    members, captions = CHOSEN[name]
    for ending, data in members:
        (tmp_path / f"k.{ending}").write_bytes(data)
    (tmp_path / "k.v2.mask.png").unlink(missing_ok=True)  # in a folder, every image is one
    assert list(samples(tmp_path).values()) == [captions]


NOTHING: dict[str, tuple[Members, str]] = {
    "other texts alone": ([("jpg", IMAGE), ("url.txt", b"http://x")], "no caption among .jpg, .url.txt; nor is"),
    "json without a caption": (
        [("jpg", IMAGE), ("json", b'{"url": "x", "width": 3}')],
        "(its .json is an object with the keys url, width)",
    ),
    "json of numbers": ([("jpg", IMAGE), ("json", b"[0.25, 0.5]")], "(its .json is a list)"),
    "classes": ([("cls", b"3"), ("jpg", IMAGE)], "no caption among .cls, .jpg; nor is"),
    "no text in all of the tar": (
        [("jpg", IMAGE)],
        "no caption among .jpg; nor is there one in all of the tar; expected a .txt of",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_sample_without_captions_lists_what_is_there(tmp_path: Path, name: str) -> None:
    members, words = NOTHING[name]
    assert in_tar(tmp_path, [(f"n01/k.{ending}", data) for ending, data in members]) == {"n01/k": "no-captions"}
    assert words in faults(tmp_path / "t.tar")[0]


def test_images_of_which_none_is_told_from_the_others(tmp_path: Path) -> None:
    members = [("a.jpg", IMAGE), ("a.png", IMAGE), ("a.txt", b"x")]
    members += [("b.left.jpg", IMAGE), ("b.right.jpg", IMAGE), ("b.txt", b"x"), ("c.jpg", IMAGE), ("c.txt", b"whole")]
    members += [("d.mp4", b"x"), ("d.txt", b"x"), ("e.avif", b"x"), ("e.thumb.jpg", IMAGE), ("e.txt", b"no thumb")]
    found = in_tar(tmp_path, members)
    assert found == {"a": "malformed-record", "b": "malformed-record", "c": ("whole",), "d": "malformed-record"} | {
        "e": ("no thumb",)
    }
    assert listed(opened(str(tmp_path / "t.tar")))[-1][2] == b"x", "another picture is not taken for the missing one"
    assert [fault.partition(": ")[2][:37] for fault in faults(tmp_path / "t.tar")] == [
        "a has the images .jpg, .png: expected",
        "b has the images .left.jpg, .right.jp",
        "d has no image among .mp4, .txt",
    ]


def test_one_bad_caption_leaves_the_others(tmp_path: Path) -> None:
    (captions,) = in_tar(tmp_path, [("a.jpg", IMAGE), ("a.json", b'{"caption": ["good", 5, null]}')]).values()
    assert [str(caption).partition(":")[0] for caption in captions] == ["good", "malformed-caption", "empty-caption"]


@pytest.mark.parametrize("text", ["cp1252", "utf-16"])
def test_texts_in_the_encoding_that_is_set_or_seen(tmp_path: Path, text: str) -> None:
    told = None if text == "utf-16" else text
    document = json.dumps({"caption": "café"}, ensure_ascii=False)
    members = [("a.jpg", IMAGE), ("a.txt", "café".encode(text)), ("b.jpg", IMAGE), ("b.json", document.encode(text))]
    assert in_tar(tmp_path, members, encoding=told) == {"a": ("café",), "b": ("café",)}
    for name, data in members:
        (tmp_path / "f" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    assert samples(tmp_path / "f", encoding=told) == {"a.jpg": ("café",), "b.jpg": ("café",)}


SYSTEM_FILES = [
    *("._a.jpg", "x/._a.txt", "x/.DS_Store", "__MACOSX/x/._a.jpg", "__MACOSX/a.jpg", "x/Thumbs.db", "desktop.ini"),
    *("x/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "x/@eaDir/a.txt", "lost+found/b.txt", "x/.ipynb_checkpoints/b.jpg"),
    *("$RECYCLE.BIN/b.jpg", "System Volume Information/b.txt", ".hidden.jpg", "x/.AppleDouble/a.jpg"),
]


def test_system_files_are_passed_over_in_tars_and_folders(tmp_path: Path) -> None:
    real = [("x/a.jpg", IMAGE), ("x/a.txt", b"kept")]
    strange = [(name, b"\0\5\26\7") for name in SYSTEM_FILES]
    assert in_tar(tmp_path, [*strange[:4], real[0], *strange[4:], real[1], *strange[:5]]) == {"x/a": ("kept",)}
    for name, data in real + strange:
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert samples(tmp_path / "f") == {"x/a.jpg": ("kept",)}
    assert in_tar(tmp_path, strange) == {"t.tar": "malformed-record"}
    assert "no file that could belong to a sample, such as 0001.jpg: it has '._a.jpg'" in faults(tmp_path / "t.tar")[0]
    kept = in_tar(tmp_path, [("home/me/.cache/a.jpg", IMAGE), ("home/me/.cache/a.txt", b"kept")])
    assert kept == {"home/me/.cache/a": ("kept",)}, "a cache's whole path"


def test_a_pattern_passes_system_files_over_unless_it_means_them(tmp_path: Path) -> None:
    for name in ("0.tar", ".1.tar"):
        (tmp_path / name).write_bytes(tar_bytes([("a.jpg", IMAGE), ("a.txt", name.encode())]))
    (tmp_path / "._0.tar").write_bytes(b"\0\5\26\7")
    assert samples(tmp_path / "*.tar") == {"a": ("0.tar",)}
    assert samples(tmp_path / ".1*") == {"a": (".1.tar",)}


APART: dict[str, tuple[list[str], str, str]] = {
    "texts before images": (
        [*(f"{n}.json" for n in range(4)), *(f"{n}.png" for n in range(4))],
        "not-adjacent",
        "0.json at byte 512 and 0.png at byte 4,608",
    ),
    "a stray text first": (
        ["LICENSE.txt", *(f"x/{n}.jpg" for n in range(3)), *(f"x/{n}.txt" for n in range(3))],
        "not-adjacent",
        "x/0.jpg at byte 1,536 and x/0.txt at byte 4,608)",
    ),
    "texts in another folder": (
        [*(f"captions/{n}.txt" for n in range(3)), *(f"images/{n}.jpg" for n in range(3))],
        "no-captions",
        "captions/0.txt and images/0.jpg stand in different folders: put each text beside its image",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_members_that_stand_apart(tmp_path: Path, name: str) -> None:
    names, reason, words = APART[name]
    data = {"json": JSON, "txt": b"told"}
    found = in_tar(tmp_path, [(name, data.get(name.rpartition(".")[2], IMAGE)) for name in names])
    assert len(found) == len(names)
    assert reason in found.values()
    assert sum(words in fault for fault in faults(tmp_path / "t.tar")) >= len(names) - 1
    (tmp_path / "t.tar").write_bytes(tar_bytes([("cat/0.jpg", IMAGE), ("dog/0.jpg", IMAGE), ("dog/0.txt", b"x")]))
    assert "folder" not in faults(tmp_path / "t.tar")[0], "a text that has its own image is no other's"


def test_members_apart_are_told_in_flat_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (500, 5_000):
        names = [f"{n}.{ending}" for ending in ("jpg", "txt") for n in range(count)]
        (tmp_path / "t.tar").write_bytes(tar_bytes([(name, b"x") for name in names]))
        source = opened(str(tmp_path / "t.tar"))
        tracemalloc.start()
        assert sum(record.rejected.reason == "not-adjacent" for record in source.records("train")) == 2 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Holding the members of 4,500 more keys would take megabytes; when garbage is collected moves the peaks by less.
    assert peaks[1] < peaks[0] * 1.15 + 400_000
    assert in_tar(tmp_path, [(f"a.{n}.jpg", b"x") for n in range(1_200)]) == {"a": "malformed-record"}
    assert "1,000 members or more (is there a dot in its key?" in faults(tmp_path / "t.tar")[0]


def linked_tar(links: dict[str, tuple[bytes, str]], members: Members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name in links:
                info.type, info.linkname = links[name]
            elif data.startswith(b"sparse"):
                info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
                info.name = f"GNUSparseFile.7/{name}"
            info.size = 0 if name in links else len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_links_and_sparse_members_are_told_with_the_way_out(tmp_path: Path) -> None:
    links = {"b.jpg": (tarfile.LNKTYPE, "a.jpg"), "c.txt": (tarfile.SYMTYPE, "/data/c.txt")}
    links["e.txt"] = (tarfile.LNKTYPE, "a.txt")
    members = [(f"{key}.{ending}", data) for key in "abc" for ending, data in (("jpg", IMAGE), ("txt", b"x\ny"))]
    members += [("d.jpg", b"sparse"), ("d.txt", b"x"), ("e.jpg", IMAGE), ("e.json", JSON), ("e.txt", b"")]
    (tmp_path / "t.tar").write_bytes(linked_tar(links, members))
    bad = dict.fromkeys("bcd", "member-without-bytes")
    assert samples(tmp_path / "t.tar") == {"a": ("x", "y"), **bad, "e": ("in json",)}
    found = faults(tmp_path / "t.tar")
    for fault, words in zip(
        found, ("'a.jpg'.* --hard-dereference", "'/data/c.txt'.* -h ", "sparse.* -S "), strict=True
    ):
        assert re.search(words, fault), fault
    lost = [record.captions for record in opened(str(tmp_path / "t.tar")).records("train")]
    assert lost[1:4] == [2, 0, 1]
