"""Any set of modalities: heads are trained on scenes with gaps, ranked pair by pair, enriched, and classify unseen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from conftest import small_scenes
from refusals import refused
from scipy.stats import spearmanr
from test_core_students import QUICK

from models.aligned import AlignedModel
from models.heads import with_widths
from models.students import load_student
from pipeline.extract import extract
from stores import ParameterError, Store, StudentError
from stores.errors import StoreError
from stores.features import PartOrigin, read_part, write_part
from stores.layout import Layout
from stores.parameters import Coordination, Evaluation, Head, Loss, Student, Train
from stores.tables import table_writer
from train.data.batches import TrainingData
from train.data.partners import by_twos
from train.eval_cli import main
from train.evaluation.embed import embed_split
from train.evaluation.evaluate import caption_pairs, compare_split, evaluate
from train.evaluation.every_pair import EveryPair
from train.evaluation.figure_tables import difference
from train.evaluation.models import StudentModel, load_model
from train.evaluation.ranked_modalities import SplitModalities, relevance
from train.fit.processes import make_accelerator
from train.fit.unreached import freeze_unreached
from train.losses.objective import make_objective
from train.report.page import write_report
from train.report.page.modality_pairs import modality_tables
from train.run import run

STORED = {"image": "hog-color", "text": "minilm", "attributes": "attributes", "speech": "speech"}
FIVE = {**STORED, "class_embedding": "class_embedding"}
ENRICHED = ("image+text", "text+speech", "image+attributes")
ALONE = Loss(original="pcmc", alpha=0.0, beta=0.0)


def heads(names: dict[str, str], **settings: Any) -> Student:
    return Student(
        model="heads", dim=32, heads={name: Head(features=stored) for name, stored in names.items()}, **settings
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Scenes with all modalities, some rows missing in training, and speech of half the test captions."""
    folder = tmp_path_factory.mktemp("modalities")
    small = small_scenes(train=96, val=16, test=40, unseen=12)
    names = ["attributes", "speech", "class_embedding"]
    scenes = replace(small.data.scenes, modalities=names, missing=0.4)
    extract(replace(small, data=replace(small.data, scenes=scenes)), folder / "store")
    given = Store.open(folder / "store")
    rows = given.rows("test", "caption")
    assert given.manifest.features["speech"].invalid > 0 == given.manifest.features["class_embedding"].invalid
    _without(given, "speech", rows[::2])
    return given


def _without(store: Store, name: str, rows: np.ndarray) -> None:
    """Take rows away from stored features, as if they had never been there."""
    layout, entry = Layout(store.root), store.manifest.features[name]
    for shard in store.manifest.shards:
        origin = PartOrigin(teacher_fingerprint=entry.fingerprint, shard_sha256=shard.sha256)
        values, valid = read_part(layout.features(name, shard.name), (shard.captions, *entry.shape), origin)
        gone = np.isin(shard.first_caption + np.arange(shard.captions), rows)
        values, valid = np.where(gone[:, None], np.float16(0), values), valid & ~gone
        write_part(layout.features(name, shard.name), values, valid, origin)


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = Evaluation(enriched=list(ENRICHED))
    parameters = replace(QUICK, student=heads(FIVE), loss=ALONE, eval=settings)
    return folder, run(parameters, store, folder)["pcmc"]


@pytest.fixture(scope="module")
def measured(store: Store, trained: tuple[Path, dict[str, Any]]) -> tuple[AlignedModel, dict[str, Any]]:
    """The trained model, and the items of the test split."""
    model = load_model(str(trained[0]), device="cpu", precision="fp32")
    assert isinstance(model, StudentModel)
    accelerator = make_accelerator(QUICK)
    return model.aligned, embed_split(model.aligned, store, "test", accelerator, 64, 0)


def test_a_head_reads_no_features_of_the_other_modality(store: Store) -> None:
    with refused(StudentError, where="student.heads.image", found="minilm, of texts", expected="features of images"):
        with_widths(heads({"image": "minilm", "text": "hog-color"}), store)


def test_uni_modal_figures_leave_absent_items_out(store: Store, tmp_path: Path) -> None:
    """Rows without attributes or speech would else be equal vectors: each other's nearest, and alike."""
    given = with_widths(heads({"image": "attributes", "text": "speech"}), store)
    model = AlignedModel(load_student(given)).eval()
    for split in ("train", "test"):
        encoded = embed_split(model, store, split, make_accelerator(QUICK), 64, 0)
        compared = partial(compare_split, model, encoded, tmp_path)
        figures, _ = evaluate(model, encoded, compared, store, split, Evaluation(), tmp_path)
        there = {
            name: np.flatnonzero(store.features(feature).valid[store.rows(split, level)])
            for name, feature, level in (("image", "attributes", "sample"), ("text", "speech", "caption"))
        }
        labels = np.array(store.samples["label"].take(store.rows(split, "sample")[there["image"]]).to_pylist())
        vectors = torch.nn.functional.normalize(encoded["image"].unimodal[there["image"]].double())
        nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(dim=1).numpy()
        assert figures["image_class_R@1"] == pytest.approx(100 * (labels[nearest] == labels).mean())
        first, second, gold = caption_pairs(store, split) or ([], [], [])
        kept = np.isin(first, there["text"]) & np.isin(second, there["text"])
        texts = torch.nn.functional.normalize(encoded["text"].unimodal).numpy()
        alike = (texts[first[kept]] * texts[second[kept]]).sum(axis=1)
        assert figures["caption_spearman"] == pytest.approx(100 * spearmanr(alike, gold[kept]).statistic, abs=0.01)
    assert len(there["text"]) == len(store.rows("test", "caption")) // 2


def test_every_pair_is_ranked_as_by_hand(store: Store, trained: Any, measured: Any) -> None:
    """Of a query without a partner nothing is asked, and an item that is absent is no candidate."""
    _, figures = trained
    _, encoded = measured
    names = [*FIVE, *ENRICHED]
    ways = [(a, b) for a in names for b in names if a != b and not set(a.split("+")) & set(b.split("+"))]
    assert figures["pairs"].keys() == {f"{a}_to_{b}" for a, b in ways}
    captions, samples = store.rows("test", "caption"), store.rows("test", "sample")
    owners = store.captions["sample"].to_numpy()[captions] - samples[0]
    units = {name: torch.nn.functional.normalize(items.vector).numpy() for name, items in encoded.items()}
    spoken = np.flatnonzero(np.arange(len(captions)) % 2)
    for (first, one, mine), (second, other, theirs) in (
        (("speech", units["speech"][spoken], spoken), ("text", units["text"], np.arange(len(captions)))),
        (("text", units["text"], np.arange(len(captions))), ("speech", units["speech"][spoken], spoken)),
        (("image", units["image"], np.arange(len(samples))), ("speech", units["speech"][spoken], owners[spoken])),
        (("speech", units["speech"][spoken], owners[spoken]), ("image", units["image"], np.arange(len(samples)))),
    ):
        hits = np.zeros(3)
        asked = [row for row in range(len(one)) if mine[row] in theirs]
        for row in asked:
            order = np.argsort(-(one[row] @ other.T))
            rank = next(place for place, column in enumerate(order) if theirs[column] == mine[row])
            hits += rank < np.array([1, 5, 10])
        found = figures["pairs"][f"{first}_to_{second}"]
        assert [found[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx(100 * hits / len(asked))
    own = figures["pairs"]["image_to_text"]
    assert figures["image_to_text"] == {name: own[name] for name in ("R@1", "R@5", "R@10")}


def test_the_page_has_a_bar_for_every_pair(store: Store, trained: Any) -> None:
    folder, figures = trained
    text = write_report(folder, store).read_text()
    section = text[text.index('<section id="modalities">') : text.index('<section id="curves">')]
    assert section.count("<svg") == len(figures["pairs"]) + len(figures["zero_shot"])
    value = figures["pairs"]["image+text_to_speech"]["R@1"]
    best = max(figures["pairs"][f"{part}_to_speech"]["R@1"] for part in ("image", "text"))
    row = section[section.index("image+text → speech</th>") :].split("</tr>")[0]
    assert f'width="{min(value, best):.2f}"' in row
    assert difference(best, value).text in row
    assert "pairs ·" not in text


def test_of_further_models_bars_gain_over_the_first() -> None:
    """A model of fewer modalities lacks the pair, and one of more is set against it where it has it."""
    two = {"RSUM": 1.0, "pairs": {"image_to_text": {"R@1": 40.0}}}
    three = {"pairs": {"image_to_text": {"R@1": 30.0}, "text_to_speech": {"R@1": 70.0}}}
    (table,) = modality_tables({"two": two, "three": three, "none": {"RSUM": 2.0}})
    assert [(row.name, row.model, row.value, row.since, row.over) for row in table.rows] == [
        ("image → text", "two", 40.0, 40.0, ""),
        ("image → text", "three", 30.0, 40.0, "two"),
        ("text → speech", "three", 70.0, 70.0, ""),
    ]
    assert table.rows[1].gain == difference(40.0, 30.0)
    assert modality_tables({"none": {"RSUM": 2.0}}) == []


@pytest.mark.parametrize("enrichment", ["unit", "sum"])
def test_enrichment_is_the_equation(store: Store, measured: Any, tmp_path: Path, enrichment: Any) -> None:
    model, encoded = measured
    split = SplitModalities(model, encoded, store, "test")
    first, second = split.ranked("text+speech"), split.ranked("image+attributes")
    found = split.compared(first, second, tmp_path, enrichment).rows()
    units = {name: torch.nn.functional.normalize(items.vector).double() for name, items in encoded.items()}
    spoken = (torch.arange(first.encoded.size) % 2 == 1).double()[:, None]
    one, other = units["text"] + spoken * units["speech"], units["image"] + units["attributes"]
    if enrichment == "unit":
        one, other = torch.nn.functional.normalize(one), torch.nn.functional.normalize(other)
    expected, cosines = one @ other.T, torch.cat(list(found))
    factor = float((expected * cosines).sum() / (cosines * cosines).sum())
    torch.testing.assert_close(cosines * factor, expected, rtol=0, atol=1e-5)
    assert factor == pytest.approx(1.0, abs=1e-5) if enrichment == "unit" else factor > 1.5
    query = split.ranked("image+text"), split.ranked("speech")
    similar = torch.cat(list(split.compared(*query, tmp_path, "unit").rows())).argsort(dim=1, descending=True)
    owners = store.captions["sample"].to_numpy()[store.rows("test", "caption")] - store.rows("test", "sample")[0]
    sums = (units["image"][torch.from_numpy(owners.copy())] + units["text"]) @ units["speech"][1::2].T
    assert torch.equal(similar[:, :3], sums.argsort(dim=1, descending=True)[:, :3]), "queries: the sum of both"


def test_unseen_classes_are_told_by_their_own_vectors(store: Store, trained: Any, measured: Any) -> None:
    _, figures = trained
    _, encoded = measured
    labels = np.array(store.samples["label"].to_pylist())
    names = np.array(store.classes["name"].to_pylist())
    here, seen = labels[store.rows("test", "sample")], set(labels[store.rows("train", "sample")])
    unseen = np.array([name not in seen and name in here for name in names])
    assert unseen.sum() > 3
    units = {name: torch.nn.functional.normalize(items.vector).numpy() for name, items in encoded.items()}
    asked = np.isin(here, names[unseen])
    guessed = names[unseen][(units["image"][asked] @ units["class_embedding"][unseen].T).argmax(axis=1)]
    right = guessed == here[asked]
    by_class = [right[here[asked] == name].mean() for name in np.unique(here[asked])]
    found = figures["zero_shot"]["image_to_class_embedding"]
    assert found["accuracy"] == pytest.approx(100 * np.mean(by_class))
    assert found["plain accuracy"] == pytest.approx(100 * right.mean())
    assert found["chance"] == pytest.approx(100 / unseen.sum())
    assert figures["zero_shot"].keys() == {f"{name}_to_class_embedding" for name in (*STORED, *ENRICHED)}
    rich = torch.nn.functional.normalize(encoded["image"].vector) + torch.nn.functional.normalize(
        encoded["attributes"].vector
    )
    guessed = names[unseen][(rich.numpy()[asked] @ units["class_embedding"][unseen].T).argmax(axis=1)]
    enriched = figures["zero_shot"]["image+attributes_to_class_embedding"]["plain accuracy"]
    assert enriched == pytest.approx(100 * (guessed == here[asked]).mean())
    both = found["generalised seen"], found["generalised unseen"]
    assert found["harmonic mean"] == pytest.approx(2 * both[0] * both[1] / sum(both) if sum(both) else 0.0)


@pytest.mark.parametrize("hits", ["sample", "class"])
def test_a_hit_may_be_of_the_sample_or_the_class(store: Store, measured: Any, tmp_path: Path, hits: Any) -> None:
    model, encoded = measured
    split = SplitModalities(model, encoded, store, "test")
    own = relevance(split.ranked("text"), split.ranked("speech"), hits)
    partners = own.sum(axis=1)
    assert partners.max() >= (3 if hits == "sample" else 6) > 1
    every = EveryPair(
        model, encoded, store, "test", Evaluation(hits=hits), (("", ""), lambda: pytest.fail("not asked")), tmp_path
    )
    found = every.retrieval()
    assert ("mAP@R" in found["image_to_text"]) == (hits == "class")
    assert "mAP@R" in found["image_to_class_embedding"]


def test_two_modalities_learn_by_every_loss_and_towers_are_heads_too(store: Store, tmp_path: Path) -> None:
    """Soft labels work on heads; a tower in place of a table is trained along, unless it is frozen."""
    two = heads({"text": "minilm", "image": "hog-color"})  # in whichever order
    found = run(replace(QUICK, student=two), store, tmp_path / "cusa", report=True)["soft_labels"]
    assert {"RSUM", "image_class_R@1", "caption_spearman"} <= found.keys()
    assert (tmp_path / "cusa" / "report.html").exists()
    mixed = replace(
        two, heads={"image": Head(tower="tiny_students:Tiny"), "text": Head(features="minilm", hidden=True)}
    )
    each = replace(ALONE, coordination=Coordination(temperatures="each", weights={"image/text": 2.0}))
    found = run(replace(QUICK, student=mixed, loss=each), store, tmp_path / "tower")["pcmc"]
    assert "RSUM" in found
    spoken = heads({"text": "minilm", "speech": "speech"})
    found = run(
        replace(QUICK, student=spoken, loss=replace(ALONE, original="pcmr")), store, tmp_path / "x", report=True
    )
    assert found["pcmr"]["text_to_speech"].keys() == {"R@1", "R@5", "R@10"}
    assert not (tmp_path / "x" / "report.html").exists()
    text = (tmp_path / "x" / "README.md").read_text()
    assert "text → speech" in text
    arguments = ["--model", tmp_path / "x", "--store", store.root, "--out", tmp_path / "eval", "--precision", "fp32"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0
    assert "embeds texts and speechs; the task image-retrieval needs one of images" in " ".join(result.stderr.split())
    figures = json.loads((tmp_path / "eval" / "figures.json").read_text())["results"][0]["figures"]
    assert figures["store, test"]["text_to_speech"] == found["pcmr"]["text_to_speech"]
    assert 'Head(features="minilm"' in text


@pytest.mark.parametrize("freeze", [[], ["image"]], ids=["all", "frozen"])
def test_of_a_model_s_towers_only_the_one_that_is_used_learns(store: Store, freeze: list[str]) -> None:
    """A parameter that no step reaches would stop a training in several processes."""
    towers = {"image": Head(tower="open-clip:small-clip"), "text": Head(features="minilm")}
    student = load_student(with_widths(replace(heads({}), heads=towers, freeze=freeze), store))
    found = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("models.0.model.visual") for name in found) == (not freeze)
    assert {name.split(".")[0] for name in found} == ({"heads"} if freeze else {"heads", "models"})
    assert not any("text" in name or "token" in name or "logit" in name for name in found if name.startswith("models"))


def test_in_every_batch_it_is_told_who_has_a_class(store: Store, tmp_path: Path) -> None:
    """Two samples without a label: the shares of a batch, of which few hold one, must gather the same."""
    shutil.copytree(store.root, tmp_path / "store")
    table = store.samples
    labels = [None if row in (3, 4) else label for row, label in enumerate(table["label"].to_pylist())]
    place = table.schema.get_field_index("label")
    field = table.schema.field(place)
    table = table.set_column(place, field, pa.array(labels, pa.string()).cast(field.type))
    with table_writer(Layout(tmp_path / "store").samples, table.schema) as writer:
        writer.write_table(table)
    few = Store.open(tmp_path / "store")
    inputs = load_student(with_widths(heads({"image": "hog-color", "class_embedding": "class_embedding"}), few)).inputs
    slugs = {"image": "hog-color", "text": "minilm"}
    data = TrainingData(few, Train(batch_size=8), slugs, inputs, torch.device("cpu"), classed=True, soft=False)
    present = [batch.present["class_embedding"] for batch in data.loader]
    assert 0 < sum(int((~flags).sum()) for flags in present) < len(present), "fewer rows than batches"


def test_a_uni_modal_head_that_no_term_teaches_does_not_learn(store: Store) -> None:
    model = AlignedModel(load_student(with_widths(heads(STORED), store)))
    assert freeze_unreached(model, make_objective(Loss())) == ""
    frozen = {name.rsplit(".", 2)[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"uni_heads.attributes", "uni_heads.speech"}


def test_what_heads_cannot_be_is_said(store: Store, tmp_path: Path) -> None:
    for student, error, words in (
        (heads({}), StudentError, "student.heads is empty"),
        (heads({"image": "nothing"}), StoreError, "no features 'nothing'"),
        (replace(heads(STORED), heads={"image": Head()}), StudentError, "one of them"),
        (replace(heads(STORED), heads={"speech": Head(tower="tiny_students:Tiny")}), StudentError, "no such tower"),
        (replace(heads(STORED), heads={"image": Head(features="hog-color", width=3)}), StudentError, "expected 3"),
        (heads(STORED, freeze=["image"]), StudentError, "does not say what its image tower is"),
    ):
        with pytest.raises(error, match=words):
            load_student(with_widths(student, store))
    for wrong in ("image+smell", "image", "image+image"):
        with pytest.raises(ParameterError, match="two or more of image, text"):
            run(replace(QUICK, student=heads(STORED), eval=Evaluation(enriched=[wrong])), store, tmp_path / "run")


def test_run_json_says_how_wide_the_features_are(trained: Any) -> None:
    recorded = json.loads((trained[0] / "run.json").read_text())
    assert recorded["parameters"]["student"]["heads"]["class_embedding"]["level"] == "class"
    assert {"speech", "class_embedding"} <= recorded["data"].keys()


def test_rare_modalities_meet_another_of_their_kind() -> None:
    """Rows come once each; of a modality that is expected once a batch, nearly no batch has one alone."""
    random, size = np.random.default_rng(0), 64
    present = random.random((6400, 3)) < [0.9, 1 / size, 2 / size]
    order = by_twos(present, size)
    assert np.array_equal(np.sort(order), np.arange(len(order)))
    for column in (1, 2):
        before, after = (flags[:, column].reshape(-1, size).sum(axis=1) for flags in (present, present[order]))
        assert (before == 1).sum() > 20
        assert (after == 1).sum() < (before == 1).sum() / 4
    assert np.array_equal(by_twos(present[:, :1], size), np.arange(6400)), "a common one leaves the order as it is"
