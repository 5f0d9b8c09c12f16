"""Indices: exact or approximate by size, recall as measured by brute force, repair, refusals, bounded memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from refusals import refused
from rich.progress import Progress
from written_stores import vectors_entry

from pipeline.indices import build, check_index_kind, ensure_index
from pipeline.indices.build import draw_sample
from pipeline.indices.kinds import choose_kind, training_rows
from stores import Features, ParameterError, Shard, StoreError
from stores.errors import DamagedStoreError
from stores.features import PartOrigin, write_part
from stores.index import Index
from stores.layout import Layout
from stores.parameters import Extract

DIM, FIRST, SIZES = 32, 700, (2500, 1, 1999)
APPROXIMATE = Extract(exact_rows=1000)


class Made:
    """A teacher's features in a folder: one foreign shard, then the split's."""

    def __init__(self, folder: Path, sizes: tuple[int, ...] = SIZES, seed: int = 0, invalid: tuple[int, ...] = ()):
        self.layout = Layout(folder)
        self.table, self.valid = clustered(FIRST + sum(sizes), seed), np.ones(FIRST + sum(sizes), bool)
        self.valid[list(invalid)] = False
        self.table[~self.valid] = 0
        shards, first = [], 0
        for number, count in enumerate((FIRST, *sizes)):
            split = "test" if number else "other"
            shards.append(shard(f"{split}-{number:06d}", split, count, first))
            span, origin = slice(first, first + count), PartOrigin(teacher_fingerprint="a" * 64, shard_sha256="b" * 64)
            write_part(self.layout.features("t", shards[-1].name), self.table[span], self.valid[span], origin)
            first += count
        self.parts = {one.name: hashlib.sha256(f"{one.name} {seed}".encode()).hexdigest() for one in shards}
        teacher = vectors_entry(DIM, "a" * 64, self.parts)
        self.features, self.shards = Features(self.layout, "t", tuple(shards), teacher), tuple(shards[1:])
        self.path, self.card_path = self.layout.index("t", "test"), self.layout.index_card("t", "test")

    def ensure(self, settings: Extract, progress: Progress | None = None) -> str | None:
        digest, why = ensure_index(
            self.features, "test", self.shards, self.parts, self.layout, settings, progress=progress
        )
        assert digest == hashlib.sha256(self.path.read_bytes()).hexdigest()
        return why

    @property
    def card(self) -> dict[str, object]:
        return json.loads(self.card_path.read_text())

    @property
    def index(self) -> Index:
        return Index.read(self.path)


def clustered(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count // 50, DIM))[generator.integers(count // 50, size=count)]
    rows = rows + 0.8 * generator.normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def shard(name: str, split: str, count: int, first: int) -> Shard:
    return Shard(
        name=name,
        split=split,
        samples=count,
        captions=0,
        first_sample=first,
        first_caption=0,
        bytes=0,
        sha256="b" * 64,
    )


def recall_by_brute_force(made: Made, index: Index) -> float:
    """Recall@10 of every row of the split, its own left out: the whole matrix at once, by numpy alone."""
    rows = FIRST + np.flatnonzero(made.valid[FIRST:])
    exact = made.table[rows].astype(np.float32)
    similarity = exact @ exact.T
    np.fill_diagonal(similarity, -np.inf)
    tenth = np.sort(similarity, axis=1)[:, -10]
    found = index.search(exact, 11)[1]
    place = {row: number for number, row in enumerate(rows)}
    hits = [
        sum(
            similarity[number, place[row]] >= tenth[number] - 1e-5
            for row in [r for r in near if r != rows[number]][:10]
        )
        for number, near in enumerate(found)
    ]
    return float(np.mean(hits) / 10)


def test_up_to_the_threshold_search_is_exact(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.ensure(Extract(exact_rows=sum(SIZES))) == "missing"
    assert (made.card["kind"], made.card["recall_at_10"], made.card["rows"]) == ("Flat", 1.0, 4500)
    assert recall_by_brute_force(made, made.index) == 1.0
    # What is chosen beyond the threshold does not concern an exact index.
    assert made.ensure(Extract(exact_rows=sum(SIZES), index="IVF16,Flat", min_recall=0.5)) is None
    assert made.ensure(Extract(exact_rows=sum(SIZES) - 1)) == "stale: other kind"
    assert str(made.card["kind"]).startswith("IVF")


def test_an_approximate_index_is_as_good_as_its_card_says(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    card = made.card
    assert card["kind"] == "IVF64,SQfp16"
    assert (card["rows"], card["dim"], card["queries"], card["training_rows"]) == (4500, DIM, 450, 4050)
    assert card["bytes"] == made.path.stat().st_size
    assert 0.95 <= card["recall_at_10"] <= 1
    assert recall_by_brute_force(made, made.index) == pytest.approx(card["recall_at_10"], abs=0.02)
    assert faiss.extract_index_ivf(made.index.faiss_index).nprobe == card["search"]["nprobe"] < 64


def test_search_widens_with_the_recall_that_is_asked_for(tmp_path: Path) -> None:
    made, widths = Made(tmp_path), []
    for least in (0.0, 0.95, 1.0):
        made.ensure(Extract(exact_rows=0, index="IVF64,Flat", min_recall=least))
        assert made.card["recall_at_10"] >= least
        widths.append(made.card["search"]["nprobe"])
    assert widths[0] == 1 < widths[1] < widths[2] <= 64


@pytest.mark.parametrize(
    "kind", ["HNSW16", "PCA24,IVF16,PQ12x4fs,Refine(SQfp16)", "IVF16,PQ8x4,RFlat", "IVF32_HNSW8,SQ8", "SQfp16"]
)
def test_every_kind_of_width_is_found_and_files_repeat(tmp_path: Path, kind: str) -> None:
    files = []
    for name in ("a", "b"):
        made = Made(tmp_path / name)
        assert made.ensure(Extract(exact_rows=0, index=kind)) == "missing"
        files.append((made.path.read_bytes(), made.card_path.read_bytes()))
    assert files[0] == files[1]
    search = made.card["search"]
    assert ("efSearch" in search, "quantizer_efSearch" in search) == (kind == "HNSW16", kind == "IVF32_HNSW8,SQ8")
    assert ("nprobe" in search, "k_factor_rf" in search) == ("IVF" in kind, "RF" in kind or "Refine" in kind)


def test_rows_are_global_and_only_those_of_the_split(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    rows = np.array([FIRST, FIRST + 2500, FIRST + 4499])
    similarity, found = made.index.search(made.table[rows], 5)
    np.testing.assert_array_equal(found[:, 0], rows)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=2e-3)
    assert found.min() >= FIRST


@pytest.mark.parametrize("settings", [Extract(), APPROXIMATE])
def test_rows_that_failed_are_not_in_the_index(tmp_path: Path, settings: Extract) -> None:
    failed = (5, FIRST, FIRST + 77, FIRST + 2500, FIRST + 4499)
    made = Made(tmp_path, invalid=failed)
    made.ensure(settings)
    index = made.index
    assert len(index) == made.card["rows"] == 4496
    ids = faiss.vector_to_array(index.faiss_index.id_map)
    np.testing.assert_array_equal(ids, np.setdiff1d(np.arange(FIRST, FIRST + 4500), failed))


def test_equal_rows_do_not_lower_recall(tmp_path: Path) -> None:
    made = Made(tmp_path)
    generator = np.random.default_rng(0)
    made.table[FIRST:] = made.table[FIRST + generator.integers(20, size=sum(SIZES))]
    first = FIRST
    for one in made.shards:
        span, origin = (
            slice(first, first + one.samples),
            PartOrigin(teacher_fingerprint="a" * 64, shard_sha256="b" * 64),
        )
        write_part(made.layout.features("t", one.name), made.table[span], made.valid[span], origin)
        first += one.samples
    made.ensure(Extract())
    assert made.card["recall_at_10"] == 1.0


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_small_splits(tmp_path: Path, rows: int) -> None:
    made = Made(tmp_path, sizes=(rows + 2,), invalid=(FIRST, FIRST + 1))
    made.ensure(Extract(exact_rows=0))
    assert len(made.index) == rows
    assert made.ensure(Extract(exact_rows=0)) is None


def test_what_is_whole_is_kept_and_what_is_stale_is_built_again(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.ensure(APPROXIMATE) == "missing"
    before = made.path.stat().st_mtime_ns
    assert made.ensure(APPROXIMATE) is None
    # Neither batch sizes nor a threshold on the same side matter.
    assert made.ensure(Extract(exact_rows=2000, text_batch=7)) is None
    assert made.path.stat().st_mtime_ns == before
    assert made.ensure(Extract(exact_rows=1000, index="IVF32,SQ8")) == "stale: other kind"
    assert made.ensure(Extract(exact_rows=1000, index="IVF32,SQ8", min_recall=0.9)) == "stale: other min recall"
    other = Made(tmp_path, seed=1)
    assert other.ensure(Extract(exact_rows=1000, index="IVF32,SQ8", min_recall=0.9)) == "stale: other features"
    np.testing.assert_array_equal(other.index.search(other.table[[FIRST]], 1)[1], [[FIRST]])


@pytest.mark.parametrize("settings", [Extract(), APPROXIMATE])
def test_every_damage_is_seen_and_repaired_to_the_byte(tmp_path: Path, settings: Extract) -> None:
    made = Made(tmp_path)
    made.ensure(settings)
    whole = {path: path.read_bytes() for path in (made.path, made.card_path)}
    for path, why in ((made.path, "damaged: checksum"), (made.card_path, "damaged: card")):
        size = len(whole[path])
        hurt = [whole[path][: size // 2], b"", flipped(whole[path], 0), flipped(whole[path], size - 1)]
        for damaged in [*hurt, *(flipped(whole[path], size * part // 7) for part in range(1, 7))]:
            path.write_bytes(damaged)
            assert made.ensure(settings) == why
            assert {path: path.read_bytes() for path in whole} == whole
        path.unlink()
        assert made.ensure(settings) == "missing"
        assert {path: path.read_bytes() for path in whole} == whole


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_flipped_bit_of_a_card_is_seen(tmp_path: Path) -> None:
    made = Made(tmp_path, sizes=(20,))
    made.ensure(Extract())
    whole = made.card_path.read_bytes()
    for place in range(0, len(whole), 3):
        made.card_path.write_bytes(flipped(whole, place))
        assert made.ensure(Extract()) == "damaged: card"
    for foreign in (b"[]", b"null", b'{"card": 1}', b"[" * 100_000, b"\xff"):
        made.card_path.write_bytes(foreign)
        assert made.ensure(Extract()) == "damaged: card"


def test_a_kind_that_is_too_poor_is_refused_and_the_old_index_stays(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    before = made.path.read_bytes()
    with pytest.raises(StoreError) as refused:
        made.ensure(Extract(exact_rows=1000, index="IVF16,PQ2x4"))
    message = refused.value.message
    assert message.startswith("The index IVF16,PQ2x4 of t over the split 'test' finds 0.")
    assert "at its widest search (nprobe 16); extract.min_recall asks for 0.95" in message
    for way_out in ("extract.index", "IVF16,SQfp16", "a lower extract.min_recall", "extract.exact_rows=4500"):
        assert way_out in message
    assert made.path.read_bytes() == before
    assert made.ensure(APPROXIMATE) is None


def test_a_poor_first_index_leaves_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    with pytest.raises(StoreError, match="IVF1024,SQfp16"):
        made.ensure(Extract(exact_rows=0, index="PQ2x4"))
    assert not made.path.exists()
    assert not made.card_path.exists()


def test_too_few_rows_for_a_kind_end_with_faiss_s_reason(tmp_path: Path) -> None:
    made = Made(tmp_path, sizes=(100,))
    with pytest.raises(StoreError, match=r"IVF256,Flat of t .* cannot be built on 100 rows: .*extract.exact_rows=100"):
        made.ensure(Extract(exact_rows=0, index="IVF256,Flat"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nonsense", "could not parse index string nonsense"),
        ("", "could not parse"),
        ("IVF16,PQ7", "The dimension of the vector (d) should be a multiple"),
        ("LSH", "METRIC_L2"),
        ("IDMap,IVF16,Flat", "leave IDMap out"),
    ],
    ids=["nonsense", "empty", "width", "metric", "id-map"],
)
def test_a_kind_that_faiss_refuses_is_a_parameter_error(kind: str, reason: str) -> None:
    with pytest.raises(ParameterError) as refused:
        check_index_kind(Extract(index=kind), 512)
    assert refused.value.message.startswith(f"extract.index is {kind!r}, which faiss cannot make for 512 dimensions: ")
    assert reason in refused.value.message
    assert "/faiss/" not in refused.value.message
    assert "\n" not in refused.value.message


def test_kinds_by_size() -> None:
    check_index_kind(Extract(), 512)
    check_index_kind(Extract(index="OPQ64_256,IVF1024,PQ64x4fs,Refine(SQ8)"), 512)
    kinds = {rows: choose_kind(Extract(), rows) for rows in (200_000, 200_001, 10**6, 10**7, 10**8)}
    assert list(kinds.values()) == ["Flat", "IVF1024,SQfp16", "IVF2048,SQfp16", "IVF8192,SQfp16", "IVF16384,SQ8"]
    for rows, kind in kinds.items():
        check_index_kind(Extract(index=kind), 512)
        assert training_rows(kind, 768) * 768 * 4 <= 2**32
        assert training_rows(kind, 768) < rows


def test_training_rows_and_queries_are_apart_and_cover_the_split() -> None:
    rows = np.arange(10_000, 110_000)
    sample = draw_sample(rows, 20_000)
    assert (len(sample.training), len(sample.queries)) == (20_000, 1000)
    drawn = np.concatenate([sample.training, sample.queries])
    assert len(np.unique(drawn)) == 21_000
    assert np.isin(drawn, rows).all()
    for part in (sample.training, sample.queries):
        share = np.histogram(part, bins=10, range=(10_000, 110_000))[0] / len(part)
        np.testing.assert_allclose(share, 0.1, atol=0.03)


def test_blocks_are_bounded_and_make_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    whole, asked = made.path.read_bytes(), []
    monkeypatch.setattr(build, "_BLOCK_BYTES", 4 * DIM * 300)
    gather = made.features.gather
    monkeypatch.setattr(made.features, "gather", lambda rows: asked.append(len(rows)) or gather(rows))
    made.path.unlink()
    made.ensure(APPROXIMATE)
    assert made.path.read_bytes() == whole
    # The queries, and the ten rows that each of them finds, are gathered beside the blocks.
    queries = made.card["queries"]
    blocks = [count for count in asked if count not in (queries, 10 * queries)]
    assert max(blocks) == 300
    assert sum(blocks) == (4500 - queries) + 4500, "all rows but the queries train, and all are added"


def test_a_bar_shows_a_build_that_takes_time(tmp_path: Path) -> None:
    made = Made(tmp_path)
    with Progress(disable=True) as progress:
        made.ensure(APPROXIMATE, progress)
        made.ensure(Extract(), progress)
    approximate, exact = progress.tasks
    assert approximate.description == "index · t · test"
    assert (approximate.completed, approximate.total, approximate.visible) == (4500, 4500, True)
    assert not exact.visible


def test_files_that_are_no_index_of_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.faiss"
    for content in (b"", b"IxMp", b"\xff" * 4096):
        path.write_bytes(content)
        with refused(DamagedStoreError, path=path):
            Index.read(path)
    for other in (faiss.IndexFlatIP(8), faiss.IndexIDMap(faiss.IndexFlatL2(8))):
        faiss.write_index(other, str(path))
        with refused(DamagedStoreError, path=path, expected="ids of global rows, searched by inner product"):
            Index.read(path)


def test_a_disk_that_refuses_the_index_is_an_os_error(tmp_path: Path) -> None:
    index = Index.exact(clustered(100, 0), np.arange(100))
    folder = tmp_path / "indices"
    folder.mkdir()
    (folder / "i.faiss").mkdir()
    (folder / "i.faiss" / "full").touch()
    with pytest.raises(OSError, match=r"i.faiss"):
        index.write(folder / "i.faiss")
    assert [path.name for path in folder.iterdir()] == ["i.faiss"]


@pytest.mark.skipif(
    not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus(), reason="needs faiss-gpu and a GPU that it can use"
)
def test_a_gpu_builds_an_index_that_the_cpu_reads(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    assert made.card["recall_at_10"] >= 0.95
    assert recall_by_brute_force(made, made.index) == pytest.approx(made.card["recall_at_10"], abs=0.02)


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="needs a faiss without GPUs")
def test_a_gpu_that_faiss_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path)
    made.ensure(APPROXIMATE)
    assert (made.card["built_on"], capsys.readouterr().err) == ("cpu", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made.path.unlink()
    made.ensure(APPROXIMATE)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        f"The index {made.card['kind']} is built on the CPU: faiss {faiss.__version__} sees no GPU 0"
    )
    assert made.card["built_on"] == "cpu"
