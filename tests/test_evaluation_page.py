"""The page of cusa-eval: all models side by side, nothing of others overwritten, nothing taken for markup."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import fits, needs_browser
from click.testing import CliRunner, Result
from refusals import refused

from models.aligned import AlignedModel
from models.checkpoint import save_checkpoint
from models.students import load_student
from stores import Store, TrainParameters
from stores.errors import DamagedRunError
from stores.parameters import Loss, Student, Teachers, as_dict
from train.eval_cli import main
from train.evaluation.figure_tables import task_tables
from train.evaluation.measured_split import MeasuredSplit
from train.evaluation.result import Evaluation, short_names
from train.evaluation.result import Result as Measured
from train.evaluation.similarities import CosineSimilarities
from train.fit.epoch import read_epochs
from train.losses.objective import make_objective
from train.report.page import Embedded, write_evaluation
from train.report.page.charts import line_chart
from train.report.page.page_models import PageModel, dashed, learned_charts
from train.report.page.soft_labels import soft_labels
from train.report.training_curves import CurvePlot, Series

HOSTILE = '"><script>alert(1)</script>'
PLAIN = ("--device", "cpu", "--precision", "fp32", "--workers", "0")
SECTIONS = ("figures", "curves", "embeddings", "labels", "cases", "suspects", "messages")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*PLAIN, *map(str, arguments)])


def page_of(folder: Path, *arguments: object) -> str:
    result = evaluate(*arguments, "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [f"Report: {folder}/report.html", f"Figures: {folder}/figures.json"]
    return (folder / "report.html").read_text()


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


@pytest.fixture(scope="module")
def page(scenes_store: Store, scenes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run and its InfoNCE."""
    out = tmp_path_factory.mktemp("evaluation") / "eval"
    return page_of(out, "--model", scenes_run, "--model", scenes_run / "infonce", "--store", scenes_store.root)


def test_two_trainings_side_by_side(page: str) -> None:
    assert sections(page) == list(SECTIONS[:-1])
    assert re.findall(r'href="#(\w+)"', page) == list(SECTIONS[:-1])
    assert page.count("(with USA)</figcaption>") == 2
    assert page.count("(without uni-modal heads)</figcaption>") == 2
    assert page.count('<figure class="card">') == 3 + 4 + 4
    assert page.count('<figure class="suspect">') == 12
    for text in ("2 models side by side", "<bdi>run/infonce</bdi> is dashed", "retrieval", "difference", "on cpu, in"):
        assert text in page
    assert re.search(r'median rank image→text</th><td>[\d.]+</td><td>[\d.]+</td><td><span class="\w+">', page)
    assert "◆ also true" in page
    assert "run/infonce</bdi> learned no temperature for CSA and USA" in page
    assert "None is on a data set and protocol of the CUSA paper" in page
    assert "://" not in page, "nothing is loaded from elsewhere"
    assert "<script" not in page
    sources = re.findall(r'src="data:image/jpeg;base64,[^"]+"', page)
    assert len(sources) == page.count("src=") == page.count("<img ") > 0


def test_a_teacher_stands_in_tables_and_what_it_cannot_do_is_said(
    scenes_store: Store, scenes_run: Path, tmp_path: Path
) -> None:
    page = page_of(tmp_path, "--model", "minilm", "--model", scenes_run, "--store", scenes_store.root)
    assert sections(page) == list(SECTIONS)
    assert "<bdi>minilm</bdi></th><th" in page
    assert "<li>The teacher minilm embeds texts alone; retrieval needs a model that embeds images and texts" in page
    assert page.count("(with USA)</figcaption>") == 2
    assert "is dashed" not in page
    again = page_of(tmp_path, "--model", scenes_run, "--store", scenes_store.root, "--task", "sts")
    assert "minilm" not in again.split("</header>")[0], "its own page is written anew"


def test_of_many_models_the_first_have_pictures(scenes_store: Store, scenes_run: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes_run / "infonce", tmp_path / "broken")
    (tmp_path / "broken" / "epochs.csv").write_text("epoch\nfirst\n")
    student = Student(model="tiny_students:Tiny")
    others = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:length")
    record = {"epoch": 0, "parameters": as_dict(TrainParameters(student=student, teachers=others))}
    names = [f"{number}.safetensors" for number in range(4)]
    for name in names:
        save_checkpoint(tmp_path / name, {"model": AlignedModel(load_student(student))}, record)
    models = [word for name in ("broken", *names) for word in ("--model", tmp_path / name)]
    page = page_of(tmp_path / "out", *models, "--store", scenes_store.root, "--task", "retrieval")
    assert "of the first 4 of the 5 models that embed images and texts" in page
    assert page.count("(with USA)</figcaption>") == 2 * 3
    assert "(4.safetensors" not in page
    assert "<bdi>3.safetensors</bdi></th>" in page, "the tables have all"
    assert "the models differ most" in page
    assert "broken/epochs.csv: expected one row of numbers per epoch" in page
    assert sections(page) == [name for name in SECTIONS if name != "curves"]
    # The others' teachers are not the store's: P is of the model whose teachers are, the suspects by the store's own.
    only = page_of(tmp_path / "one", *models[2:4], "--store", scenes_store.root, "--task", "retrieval")
    assert sections(only) == ["figures", "embeddings", "cases", "suspects"]


def test_without_a_store_there_are_tables_alone(scenes_run: Path, tmp_path: Path) -> None:
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "STS-B.tsv").write_text("1\ta cat\ta dog\n5\ta cat\ta cat\n3\tblue\tgreen sky\n")
    arguments = ("--model", scenes_run, "--store", tmp_path / "none", "--task", "sts", "--sts", tmp_path / "sts")
    page = page_of(tmp_path / "out", *arguments)
    assert sections(page) == ["figures", "messages"]
    assert "<dt>store</dt>" not in page
    assert "STS-B: 3 pairs found, 1,379 published" in page


def test_the_paper_s_figures_stand_beside_comparable_ones(tmp_path: Path) -> None:
    results = [
        Measured(task="sts", model="a", figures={"STS13": 80.0, "average": 70.0}),
        Measured(task="sts", model="b", figures={"STS13": 79.0}),
    ]
    (table,) = task_tables(results, {"a": "a", "b": "b"})
    assert [(row.texts, row.change and row.change.effect, row.papers) for row in table.rows] == [
        (["80.0", "79.0"], "worse", [None, None]),
        (["70.0", "–"], None, [(69.4, 73.2), (71.9, 74.5)]),
    ]
    assert [list(column.cells) for column in table.terminal().columns[4:]] == [["", "69.4  73.2"], ["", "71.9  74.5"]]
    (alone,) = task_tables(results[1:], {"b": "b"})
    assert len(alone.terminal().columns) == 2, "of sets that the paper does not have"
    ranks = {"image_to_text": {"R@1": 1.0}, "median_rank": {"image_to_text": 5.0}}
    better = {"image_to_text": {"R@1": 2.0}, "median_rank": {"image_to_text": 4.0}}
    measured = [Measured(task="retrieval", model=m, figures={"x": f}) for m, f in (("a", ranks), ("b", better))]
    (table,) = task_tables(measured, {"a": "a", "b": "b"})
    assert [row.change for row in table.rows] == [None, ("+1.0", "better"), ("−1.0", "better")]
    evaluation = Evaluation(
        models=("a", "b"), store=Path("s"), split="test", device="cpu", precision="fp32", results=results
    )
    page = write_evaluation(tmp_path, evaluation, None, Embedded()).read_text()
    assert "69.4 → 73.2" in page
    assert "paper: CLIP L/14@336" in page


def test_names_and_messages_are_never_markup(scenes_store: Store, scenes_run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / HOSTILE.replace("/", "")
    hostile.symlink_to(scenes_run)
    arguments = ("--model", hostile, "--store", scenes_store.root, "--images", HOSTILE, "--task", "image-retrieval")
    page = page_of(tmp_path / "out", *arguments)
    assert "<script" not in page
    assert "&lt;/script&gt;, CUB-200-2011: not there" in page
    assert "<h1><bdi>&#34;&gt;&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{}", "holds a run of cusa-train (run.json)"),
        ("epochs.csv", "epoch", "holds a run of cusa-train (epochs.csv)"),
        ("report.html", "mine", "not as cusa-eval wrote it, found 'report.html'"),
        ("figures.json", '{"format": 1}', "not as cusa-eval wrote it, found 'figures.json'"),
        ("figures.json", "mine", "not as cusa-eval wrote it, found 'figures.json'"),
    ],
    ids=["run.json", "epochs.csv", "report.html", "figures.json-of-another", "figures.json-no-json"],
)
def test_what_is_not_its_own_is_not_overwritten(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    result = evaluate("--model", "no/such", "--out", tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()), "said before a model is loaded"
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_nothing_is_written_into_the_store(scenes_store: Store) -> None:
    result = evaluate("--store", scenes_store.root, "--out", scenes_store.root / "eval")
    assert result.exit_code == 2
    assert "lies in the store" in " ".join(result.stderr.split())


def test_models_are_told_apart_by_names_that_are_short(tmp_path: Path) -> None:
    for name in ("a/run/infonce", "b/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x.safetensors").touch()
    whole = [f"{tmp_path}/{name}" for name in ("a/run", "a/run/infonce", "b/run")]
    weights = f"open-clip:small-clip/{tmp_path}/x.safetensors"
    assert list(short_names([*whole[:2], "minilm", weights]).values()) == [
        *("run", "run/infonce", "minilm", "open-clip:small-clip/x.safetensors")
    ]
    assert list(short_names(whole).values()) == ["a/run", "a/run/infonce", "b/run"]
    assert short_names([whole[0], "run"]) == {whole[0]: whole[0], "run": "run"}
    assert short_names(["minilm"]) == {"minilm": "minilm"}


@pytest.mark.parametrize(
    "text",
    ["epoch\nfirst\n", "RSUM\n1.0\n", "epoch\n1,2\n", "epoch\n\xff\n"],
    ids=["word", "no-epoch", "columns", "latin-1"],
)
def test_an_epochs_csv_of_others_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "epochs.csv").write_text(text, encoding="latin-1")
    with refused(DamagedRunError, path=tmp_path / "epochs.csv"):
        read_epochs(tmp_path / "epochs.csv")


def test_curves_of_more_than_two_have_a_chart_each() -> None:
    none = torch.zeros((0, 2))
    tested = MeasuredSplit(none, none, CosineSimilarities(none, none))
    epochs = [{"epoch": 1.0, "validation/RSUM": 1.0, "loss/InfoNCE": 2.0, "temperature/InfoNCE": 0.05}]

    def model(name: str, loss: Loss | None, epochs: list[dict[str, float]] = epochs) -> PageModel:
        return PageModel(name=name, tested=tested, loss=loss, epochs=epochs)

    soft, plain = model("soft", Loss()), model("plain", Loss(alpha=0, beta=0))
    assert dashed([soft, plain]) is dashed([plain, soft]) is plain
    assert dashed([soft, model("other", Loss())]) is soft
    assert dashed([soft]) is None
    assert [chart.title for chart in learned_charts([soft, plain])] == [
        "Validation RSUM",
        "Parts of the loss",
        "Temperatures",
    ]
    charts = learned_charts([soft, plain, model("third", Loss()), model("unknown", None, [])])
    assert [chart.title for chart in charts[:3]] == ["Validation RSUM", "Parts of the loss, soft", "Temperatures, soft"]
    assert len(charts) == 7
    assert [mark.colour for mark in charts[0].marks] == [0, 1, 2]
    hinge = model("hinge", Loss(original="hinge"), [{"epoch": 1.0, "loss/Hinge": 0.4, "loss/ITM": 0.7}])
    (losses,) = learned_charts([hinge])
    assert [mark.name for mark in losses.marks] == ["Hinge", "ITM"], "names come from the run"
    assert "Hinge from 0.4 after epoch 1 to 0.4 after epoch 1; ITM from 0.7" in losses.alt


def test_models_of_other_soft_labels_are_not_measured_by_these(scenes_store: Store) -> None:
    random = torch.Generator().manual_seed(0)
    image, text, uni_image, uni_text = (torch.randn(size, 8, generator=random) for size in (20, 100, 20, 100))
    unknown = MeasuredSplit(uni_image, uni_text, CosineSimilarities(image, text))
    losses = {
        "plain": Loss(alpha=0, beta=0),
        "csa": Loss(beta=0),
        "both": Loss(alpha=0.3),
        "paper": Loss(teacher_temperature=1.0),
        "nearest": Loss(soft_top_k=4),
        "unknown": None,
    }
    models = []
    for name, loss in losses.items():
        tested = unknown._replace(temperatures=make_objective(loss).temperatures() if loss else None)
        models.append(PageModel(name=name, tested=tested, loss=loss))
    found = soft_labels(scenes_store, "test", TrainParameters(), models)
    assert found is not None
    assert [model.name for model in found.models] == ["plain", "csa", "both"]
    assert [model.name for model in found.others] == ["paper", "nearest"]
    assert found.at_start == [("plain", "CSA and USA"), ("csa", "USA")]


@pytest.mark.parametrize("ends", [(3.4, 4.85), (2.1, 4.9), (0.009, 0.8), (1.0, 1.0)])
def test_a_logarithmic_axis_has_ticks_whatever_its_range(ends: tuple[float, float]) -> None:
    values = np.linspace(*ends, 5)
    chart = line_chart(CurvePlot("loss", [Series(name="loss", x=np.arange(5), y=values, colour=0)], log=True))
    assert chart is not None
    assert len(chart.y) >= 3
    assert len({tick.text for tick in chart.y}) == len(chart.y)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(page: str, tmp_path: Path, width: int) -> None:
    fits(page, tmp_path, width)
