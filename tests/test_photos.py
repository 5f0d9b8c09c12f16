"""The study on photographs: what it cannot divide it says at once, and how sure a difference is over divisions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from experiments import photos
from experiments.known_features import known_teachers
from pipeline.extract import extract
from stores import ExtractParameters, Store
from stores.parameters import Data, Extract


@pytest.mark.parametrize(
    ("found", "arguments", "said"),
    [
        pytest.param(8, [], "found 8, expected at least 622: 600 to train on", id="eight"),
        pytest.param(500, ["--pictures", "100"] * 2 + ["--pictures", "479"], "478 or fewer", id="the-most-of-several"),
        pytest.param(5, ["--pictures", "1"], "To go on, name a folder of more photographs", id="too-few-for-any"),
        pytest.param(1002, ["--pictures", "1001"], "expected at least 1023", id="none-to-measure"),
        pytest.param(1002, ["--pictures", "-5"], "Invalid value for '--pictures'", id="negative"),
        pytest.param(None, [], "cannot be read (FileNotFoundError", id="no-file"),
    ],
)
def test_too_few_photographs_are_told_before_any_work(
    tmp_path: Path, found: int | None, arguments: list[str], said: str
) -> None:
    if found is not None:
        images = [{"filename": f"{n}.jpg", "split": "train"} for n in range(found)]
        (tmp_path / "dataset_karpathy.json").write_text(json.dumps({"images": images}))
    out = tmp_path / "out"
    done = CliRunner().invoke(photos.main, ["--photos", str(tmp_path), "--out", str(out), *arguments])
    assert (done.exit_code, out.exists()) == (2, False), done.output
    assert said in " ".join(done.output.split())


def test_an_interval_counts_what_divisions_share() -> None:
    differences = {(0, 0): 9.0, (0, 1): 11.0, (1, 2): 12.0, (2, 3): 14.0}  # means 10, 12 and 14: s = 2
    # t of 2 degrees of freedom is 4.303: 4.303 · 2 · √(1/3) = 4.97, and 4.303 · 2 · √(1/3 + 2) = 13.15.
    assert photos._interval(differences, 0.0) == "**+12.0 ± 5.0**"
    assert photos._interval(differences, 2.0) == "+12.0 ± 13.1"


def test_make_says_first_that_there_are_no_photographs(tmp_path: Path) -> None:
    makefile = Path(__file__).parents[1] / "Makefile"
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", str(makefile), "photos"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Skipped: there is no ../shared/")
    assert not list(tmp_path.iterdir()), "nothing is installed for it"


def test_another_division_takes_the_features_that_are_known(scenes_store: Store, tmp_path: Path) -> None:
    captions, photographs, rows = scenes_store.captions.to_pydict(), [], [7, 3, 5]
    for row in rows:
        (tmp_path / f"{row}.jpg").write_bytes(scenes_store.images[row])
        texts = [text for text, sample in zip(*captions.values(), strict=True) if sample == row]
        photographs.append({"filename": f"{row}.jpg", "split": "train", "sentences": [{"raw": one} for one in texts]})
    source = tmp_path / "dataset.json"
    source.write_text(json.dumps({"images": photographs}))
    data = Data(source=str(source), format="karpathy", images=str(tmp_path))
    known = known_teachers(scenes_store.root)
    extract(ExtractParameters(data=data, teachers=known, extract=Extract(workers=1)), tmp_path / "store")
    found = Store.open(tmp_path / "store")
    for modality, level in (("image", "sample"), ("text", "caption")):
        (theirs,) = (slug for slug, card in scenes_store.manifest.teachers.items() if card.modality == modality)
        (ours,) = (slug for slug, card in found.manifest.teachers.items() if card.modality == modality)
        wanted = (
            rows if level == "sample" else [n for row in rows for n, s in enumerate(captions["sample"]) if s == row]
        )
        expected = scenes_store.features(theirs).gather(np.array(wanted))
        np.testing.assert_array_equal(found.features(ours).gather(np.arange(len(wanted))), expected)
