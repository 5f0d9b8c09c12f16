"""The report of a run: it has all its parts, loads nothing, escapes what the data says, and fits a phone."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from accelerate.state import AcceleratorState
from browsers import fits, needs_browser
from refusals import refused

from stores import Store, TrainParameters
from stores.errors import DamagedRunError
from stores.parameters import Train
from train.evaluation.figure_tables import difference
from train.report.page import write_report
from train.report.results import run_table
from train.run import run

HOSTILE = '"><script>alert(1)</script><img src=https://example.org/x>'
QUICK = TrainParameters(train=Train(epochs=2, batch_size=16, device="cpu", precision="fp32", compare=True))


@pytest.fixture(scope="module")
def finished(scenes_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("report") / "run"
    run(QUICK, scenes_store, folder, report=True)
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return (finished / "report.html").read_text()


def test_the_page_has_all_its_parts_and_loads_nothing(page: str) -> None:
    for part in ("figures", "curves", "embeddings", "labels", "cases", "suspects"):
        assert page.count(f'<section id="{part}">') == 1
    for text in ("Validation RSUM", "Temperatures", "422.6 → 429.7", "KL(P ‖ Q)", "A caption asks for images"):
        assert text in page
    assert page.count("(with USA)</figcaption>") == 2
    assert page.count("(without uni-modal heads)</figcaption>") == 2
    assert page.count('<figure class="card">') == 3 + 4 + 4
    assert page.count('<figure class="suspect">') == 12
    assert "ground truth" in page
    assert "://" not in page, "nothing is loaded from elsewhere"
    assert "<script" not in page
    pictures = page.count("<img ")
    assert pictures > 0
    assert len(re.findall(r'src="data:image/jpeg;base64,[^"]+"', page)) == page.count("src=") == pictures
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', page)) == pictures
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page)


def test_the_page_made_again_from_the_checkpoints_is_the_same(
    finished: Path, page: str, scenes_store: Store, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / finished.name)
    again = write_report(tmp_path / finished.name, scenes_store).read_text()
    assert write_report(tmp_path / finished.name, scenes_store).read_text() == again

    def without_points(text: str) -> str:
        # Other batches round otherwise, which a t-SNE makes much of.
        text = re.sub(r' d="[^"]*"|<!-- cusa sha256:.*', "", text)
        return text.replace(str(tmp_path), str(finished.parent))

    assert without_points(again) == without_points(page)


def test_what_the_data_says_is_escaped(finished: Path, page: str, scenes_store: Store, tmp_path: Path) -> None:
    hostile = Store.open(scenes_store.root)
    captions, samples = hostile.captions, hostile.samples
    texts = pa.chunked_array([pa.array([HOSTILE] * len(captions), pa.large_string())])
    labels = pa.chunked_array([pa.array([HOSTILE] * len(samples), pa.string())])
    vars(hostile)["captions"] = captions.set_column(captions.schema.get_field_index("text"), "text", texts)
    vars(hostile)["samples"] = samples.set_column(samples.schema.get_field_index("label"), "label", labels)
    shutil.copytree(finished, tmp_path / "run")
    found = write_report(tmp_path / "run", hostile).read_text()
    assert "<script" not in found
    assert "<img src=https" not in found
    assert str(html.escape(HOSTILE)).replace("&quot;", "&#34;") in found


def test_an_unfinished_or_mixed_up_run_has_no_page(finished: Path, scenes_store: Store, tmp_path: Path) -> None:
    with refused(DamagedRunError, path=tmp_path / "metrics.json"):
        write_report(tmp_path, scenes_store)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "epochs.csv").write_text("epoch,loss/total\n")
    with refused(DamagedRunError, path=tmp_path / "run" / "epochs.csv", found=0):
        write_report(tmp_path / "run", scenes_store)


def test_a_change_says_whether_it_is_for_the_better() -> None:
    assert difference(1.0, 2.0) == ("+1.0", "better")
    assert difference(5.0, 4.0) == ("−1.0", "worse")
    assert difference(5.0, 4.0, lower_is_better=True) == ("−1.0", "better")
    assert difference(5.0, 5.04) == ("±0.0", "same")


def test_a_run_s_table_compares_what_both_trainings_measured() -> None:
    measured = {"median_rank": {"image_to_text": 3.0}, "RSUM": 300.0, "best_epoch": 7}
    table = run_table("run", {"alone": measured, "soft": {**measured, "RSUM": 310.5, "caption_spearman": 70.0}})
    assert [(row.name, row.texts, row.change) for row in table.rows] == [
        ("median rank · image→text", ["3.0", "3.0"], ("±0.0", "same")),
        ("RSUM", ["300.0", "310.5"], ("+10.5", "better")),
        ("best epoch", ["7", "7"], None),
        ("caption spearman", ["–", "70.0"], None),
    ]
    assert [str(column.header) for column in table.terminal().columns[1:]] == ["alone", "soft", "difference"]
    assert [row.name for row in run_table("run", {"alone": measured}, ("best epoch",)).rows][1:] == ["RSUM"]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(page: str, tmp_path: Path, width: int) -> None:
    fits(page, tmp_path, width)
