"""Long proofs, run by `make soak`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import content
from forked import CHECKOUT
from interrupted import kill_until_whole
from PIL import Image

from stores import Store

SCENES = ["-S", "data.scenes={train: 400, val: 30, test: 50}", "-S", "extract.shard_size=64", "-S", "extract.window=64"]


@pytest.mark.soak
def test_killed_at_fifty_moments_the_store_is_byte_identical(tmp_path: Path) -> None:
    whole, cut = kill_until_whole(tmp_path, 50, *SCENES)
    assert content(cut) == content(whole)
    assert len(Store.open(cut).samples) == 480


INGEST = """
import json, sys, time
from pathlib import Path
from rich.progress import Progress
from pipeline.ingest import ingest
from pipeline.sources import open_source
from stores.layout import Layout
from stores.parameters import Data

def mebibytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

layout, data = Layout(Path(sys.argv[2])), Data(source=sys.argv[1], merge=sys.argv[3])
layout.root.mkdir()
imported, started = mebibytes("VmHWM"), time.monotonic()
done = ingest(open_source(data), data, 1000, layout, Progress(disable=True))
seconds, peak = time.monotonic() - started, mebibytes("VmHWM")
counts = {"samples": sum(s.samples for s in done.shards), "captions": sum(s.captions for s in done.shards)}
print(json.dumps({**counts, "merged": done.merged, "seconds": seconds, "imported": imported, "peak": peak}))
"""


def ingested(folder: Path, name: str, pictures: Iterable[int], merge: str) -> dict[str, Any]:
    """Ingest a record per entry of `pictures`, in a process of its own; return what it took.

    An entry is the number of its record's picture. Pictures are links to a hundred tiny ones.
    """
    for number in range(100):
        Image.new("RGB", (8, 8), (number, 2 * number, 50)).save(folder / f"{number}.png")
    table, linked = folder / f"{name}.jsonl", set(range(100))
    with table.open("w") as stream:
        for number, picture in enumerate(pictures):
            if picture not in linked:
                (folder / f"{picture}.png").hardlink_to(folder / f"{picture % 100}.png")
                linked.add(picture)
            record = {"id": f"record-{number}", "image": f"{picture}.png", "caption": f"picture {number} of many"}
            stream.write(json.dumps(record) + "\n")
    command = [sys.executable, "-c", INGEST, str(table), str(folder / f"store-{name}"), merge]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.mark.soak
def test_a_million_records_take_ten_times_the_time_of_a_hundred_thousand_and_no_more_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = (100_000, 1_000_000)
    small, large = (ingested(tmp_path, str(count), (n % 100 for n in range(count)), "none") for count in counts)
    with capsys.disabled():
        sys.stdout.write(f"\n{small}\n{large}\n")
    assert (small["samples"], large["samples"]) == (100_000, 1_000_000)
    assert large["peak"] <= 1.15 * small["peak"]
    assert large["peak"] - large["imported"] <= 1.15 * (small["peak"] - small["imported"]) + 32
    # Not a bound on speed: on whatever machine, ten times the records take ten times as long.
    assert 0.8 <= large["seconds"] / (10 * small["seconds"]) <= 1.2


@pytest.mark.soak
def test_a_million_shuffled_rows_are_merged_in_flat_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ordered = [number // 5 for number in range(1_000_000)]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    rows = {"few": shuffled[:100_000], "ordered": ordered, "shuffled": shuffled}
    for name in rows:
        (tmp_path / name).mkdir()
    few, ordinary, merged = (ingested(tmp_path / name, name, of, "path") for name, of in rows.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{few}\n{ordinary}\n{merged}\n")
    for measured in (ordinary, merged):
        assert (measured["samples"], measured["captions"]) == (200_000, 1_000_000)
        assert measured["merged"] == {"train": 800_000}
    assert merged["peak"] - merged["imported"] <= 1.15 * (few["peak"] - few["imported"]) + 48
    # Not a bound on speed: on whatever machine, the order of the rows costs less than half again.
    assert merged["seconds"] <= 1.5 * ordinary["seconds"]


RANK = """
import json, time
import numpy as np
import torch
from scipy import sparse
from train.evaluation.exact_cosine import unit_rows
from train.evaluation.rankings import ranks_both_ways

def mebibytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

def ahead(queries, candidates, own):
    # By brute force, a part of the candidates at a time: every product of unit rows is exact in float64.
    best = torch.stack([(queries[row] * candidates[mine].double()).sum(dim=1).max() for row, mine in enumerate(own)])
    parts = (queries @ part.double().T for part in candidates.split(20_000))
    return sum((scores > best[:, None]).sum(dim=1) for scores in parts).tolist()

images_count, each, dim, checked = 100_000, 5, 512, 50
images = torch.randn(images_count, dim, generator=torch.Generator().manual_seed(0))
texts = torch.randn(images_count * each, dim, generator=torch.Generator().manual_seed(1))
texts.view(images_count, each, dim).add_(images[:, None], alpha=0.2)
pairs = np.arange(images_count * each)
own = sparse.csr_array((np.ones(len(pairs), bool), pairs, np.arange(0, len(pairs) + 1, each)))
before, started = mebibytes("VmHWM"), time.monotonic()
of_images, of_texts = ranks_both_ways(images, texts, own)
seconds, extra = time.monotonic() - started, mebibytes("VmHWM") - before
images, texts = unit_rows(images), unit_rows(texts)
expected = (
    ahead(images[:checked].double(), texts, [range(row * each, row * each + each) for row in range(checked)]),
    ahead(texts[:checked].double(), images, [[row // each] for row in range(checked)]),
)
exact = (of_images[:checked].tolist(), of_texts[:checked].tolist()) == expected
print(json.dumps({"seconds": seconds, "extra": extra, "exact": exact, "different": len(set(sum(expected, [])))}))
"""


@pytest.mark.soak
def test_a_hundred_thousand_images_and_half_a_million_captions_rank_in_bounded_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.run([sys.executable, "-c", RANK], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\n{measured}\n")
    assert measured["exact"]
    assert measured["different"] > 10, "the ranks checked are not all the first"
    unit_rows = 600_000 * 512 * 4 / 2**20
    assert measured["extra"] <= unit_rows + 300


IMPORT = """
import json, sys, time
from pathlib import Path
import numpy as np
from written_stores import shard_entry
from pipeline.imports import FeatureImport
from stores.features import PartOrigin, write_part
from stores.layout import Layout
from stores.parameters import FeatureFile

def mebibytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

count, folder = int(sys.argv[1]), Path(sys.argv[2])
table = np.lib.format.open_memmap(folder / "r.npy", "w+", np.float16, (count, 36, 64))
for start in range(0, count, 1000):
    table[start : start + 1000] = np.arange(start, start + 1000)[:, None, None] % 1000 + 1
del table
shards = [shard_entry(n, 1000, 0, n * 1000, 0) for n in range(count // 1000)]
Path("/proc/self/clear_refs").write_text("5")
before, started = mebibytes("VmRSS"), time.monotonic()
wanted = FeatureImport.of("regions", FeatureFile(file=str(folder / "r.npy")))
layout = Layout(folder / "store")
for shard, features, valid in wanted.parts(shards, shards, layout):
    origin = PartOrigin(teacher_fingerprint=wanted.fingerprint, shard_sha256=shard.sha256)
    write_part(layout.features("regions", shard.name), features, valid, origin)
seconds, taken = time.monotonic() - started, mebibytes("VmHWM") - before
print(json.dumps({"shape": features.shape[1:], "seconds": seconds, "mebibytes": taken}))
"""


@pytest.mark.soak
def test_a_million_region_features_are_imported_in_flat_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4.6 GB of regions, 36 × 64 numbers for each of a million samples."""
    found = {}
    for count in (100_000, 1_000_000):
        folder = tmp_path / str(count)
        (folder / "store").mkdir(parents=True)
        command = [sys.executable, "-c", IMPORT, str(count), str(folder)]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=paths, cwd=CHECKOUT)
        found[count] = json.loads(done.stdout)
        assert len(list((folder / "store").rglob("*.h5"))) == count // 1000
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\nimport: {found}")  # noqa: T201
    assert found[1_000_000]["shape"] == [36, 64]
    assert found[1_000_000]["mebibytes"] < found[100_000]["mebibytes"] + 20 < 200


SCORING = """
import json, sys, time
from pathlib import Path
import torch
from models.encoded import Encoded
from models.scoring import Pairwise
from train.evaluation.similarities import similarities

def mebibytes():
    return sum(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024

def network(regions, words):
    cosines = words.parts @ regions.parts.mT
    peaks.append(mebibytes())
    return cosines.amax(dim=2).mean(dim=1)

images, texts = int(sys.argv[1]), int(sys.argv[2])
sides = [Encoded(torch.randn(n, 8), parts=torch.randn(n, parts, 16)) for n, parts in ((images, 36), (texts, 20))]
peaks, before, started = [], mebibytes(), time.monotonic()
found = similarities(Pairwise(network, pair_bytes=36 * 20 * 4), *sides, torch.device("cpu"), Path(sys.argv[3]))
print(json.dumps({"shape": found.shape, "seconds": time.monotonic() - started, "mebibytes": max(peaks) - before}))
"""


@pytest.mark.soak
def test_scoring_coco_5k_takes_less_than_a_gigabyte_beyond_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5,000 × 25,000 pairs of 36 regions and 20 words: at once they would take 360 GB."""
    command = [sys.executable, "-c", SCORING, "5000", "25000", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\nscoring: {found}")  # noqa: T201
    assert found["shape"] == [5000, 25000]
    assert found["mebibytes"] < 1000
    assert list(tmp_path.iterdir()) == []
