"""An index as the first stage: its nearest, ranked anew by a student that looks at both items; by command and HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from served import Client, serving
from tiny_rerankers import tiny_x2vlm, x2vlm_file

from models.inputs import Pixels, Tokens
from models.students import load_student
from pipeline.inspection.cli import main as cusa_store
from pipeline.inspection.neighbours import Query, neighbours
from pipeline.inspection.reranker import Reranker
from pipeline.serve.answering import RERANKING
from stores import CusaError, Store
from stores.parameters import Student

K = 7


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"x2vlm:{x2vlm_file(tmp_path_factory.mktemp('second') / 'x2vlm.th', tiny_x2vlm())}"


@pytest.fixture(scope="module")
def client(searched_store: Store, reranker: str) -> Iterator[Client]:
    with serving(searched_store.root, reranker=Reranker(reranker)) as client:
        yield client


def tower(store: Store, modality: str) -> str:
    return next(name for name in store.manifest.teachers if name.startswith("run-") and name.endswith(modality))


@torch.no_grad()
def matched(spec: str, store: Store, sample: int, caption: int) -> float:
    """Return the logit of one pair, by itself."""
    student = load_student(Student(model=spec)).eval()
    pixels, tokens = student.inputs["image"], student.inputs["text"]
    assert isinstance(pixels, Pixels)
    assert isinstance(tokens, Tokens)
    image = student.encode("image", pixels.prepare(store.images[sample])[None])
    text = student.encode("text", tokens.texts([store.captions["text"][caption].as_py()]))
    return float(student.match(image, text)[0, 1])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cusa_store, [str(one) for one in arguments])


def test_the_nearest_of_an_index_are_ranked_by_match(
    searched_store: Store, reranker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    caption, sample = 41, 5
    (tmp_path / "query.png").write_bytes(searched_store.images[sample])
    asked: dict[str, tuple[str, object]] = {
        "image": ("text", searched_store.captions["text"][caption].as_py()),
        "text": ("image", tmp_path / "query.png"),
    }
    for modality, (kind, query) in asked.items():
        towers = {"teacher": tower(searched_store, modality), kind: query}
        plain = neighbours(searched_store.root, Query(**towers), K + 2)
        anew = neighbours(searched_store.root, Query(**towers, rerank=reranker, rerank_k=K), K + 2)
        expected = {
            one.row: matched(
                reranker, searched_store, *((one.row, caption) if modality == "image" else (sample, one.row))
            )
            for one in plain.found[:K]
        }
        ranked = {one.row: one.match for one in anew.found[:K]}
        assert ranked == pytest.approx(expected, abs=0.05)
        assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
        assert [(one.row, one.match) for one in anew.found[K:]] == [(one.row, None) for one in plain.found[K:]]
        assert [one.row for one in anew.found] != [one.row for one in plain.found]
        best = neighbours(searched_store.root, Query(**towers, rerank=reranker, rerank_k=K), 1).found
        assert best == anew.found[:1], "few are shown, k are looked at"
    spec = searched_store.manifest.teachers[tower(searched_store, "image")].spec
    by_name = ["--teacher", spec, "--rerank", reranker, "-k", 3]
    table = run("neighbours", searched_store.root, "--text", asked["image"][1], *by_name)
    assert (table.exit_code, "match" in table.output) == (0, True), table.output


def test_what_no_second_stage_can_rank_is_said(searched_store: Store, reranker: str) -> None:
    for arguments, message in (
        (["--row", 1, "--rerank", reranker], "images searched by row"),
        (["--text", "a", "--teacher", "minilm", "--rerank", reranker], "texts searched by text"),
        (["--text", "a circle", "--rerank", "nothing"], "nothing"),
        (["--text", "a circle", "--rerank-k", 4], "--rerank-k says how many --rerank looks at"),
        (
            ["--image", "absent.png", "--teacher", tower(searched_store, "text"), "--rerank", reranker],
            "The image absent.png cannot be read",
        ),
        (["--text", "a circle", "--rerank", "open-clip:small-clip/x"], "small-clip"),
    ):
        result = run("neighbours", searched_store.root, *arguments)
        assert (result.exit_code, message in result.output) == (2, True), result.output
    with pytest.raises(CusaError, match="compares vectors by their cosine"):
        Reranker(next(one.spec for one in searched_store.manifest.teachers.values() if one.spec.startswith("run:")))


def test_a_server_reranks_where_it_is_asked_to(client: Client, searched_store: Store, reranker: str) -> None:
    caption = 41
    text = searched_store.captions["text"][caption].as_py()
    plain = client.search(text=text, count=K).json["results"]
    anew = client.search(text=text, count=K, rerank=K).json["results"]
    assert {one["match"] for one in plain} == {None}
    assert {one["row"] for one in anew} == {one["row"] for one in plain}
    expected = [matched(reranker, searched_store, one["row"], caption) for one in anew]
    assert [one["match"] for one in anew] == pytest.approx(expected, abs=0.05)
    assert np.all(np.diff([one["match"] for one in anew]) <= 0)
    by_row = client.search(row=caption, row_of="text", count=K, rerank=K).json["results"]
    assert [one["match"] for one in by_row] == pytest.approx(
        [matched(reranker, searched_store, one["row"], caption) for one in by_row], abs=0.05
    )
    image = base64.b64encode(searched_store.images[5]).decode()
    captions = client.search(image=image, modality="text", count=3, rerank=K).json["results"]
    assert np.all(np.diff([one["match"] for one in captions]) <= 0)
    assert client.ask("GET", "/api/store").json["reranker"] == reranker
    page = client.page(q=text, rerank=16).text
    assert ('<option value="16" selected>' in page, "logit of match" in page) == (True, True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"row": 3, "rerank": 4}, "compares an image with a text"),
        ({"text": "a circle", "rerank": 257}, "less than or equal to 256"),
        ({"text": "a circle", "modality": "text", "rerank": 4}, "compares an image with a text"),
    ],
    ids=["own-modality", "too-many", "text-of-texts"],
)
def test_requests_that_cannot_be_reranked(client: Client, asked: dict[str, object], message: str) -> None:
    reply = client.search(**asked)
    assert (reply.status, message in json.loads(reply.body)["error"]) == (400, True), reply.text


def test_a_server_without_a_second_stage_says_so(searched_store: Store) -> None:
    with serving(searched_store.root) as plain:
        reply = plain.search(text="a circle", rerank=4)
        assert (reply.status, "--rerank" in reply.json["error"]) == (400, True)
        assert "Second stage" not in plain.page(q="a circle").text


def test_no_more_queries_wait_than_a_second_stage_can_answer(searched_store: Store, reranker: str) -> None:
    """Each is answered or refused, and what was refused may be asked again."""
    second = Reranker(reranker)
    with serving(searched_store.root, reranker=second) as client, ThreadPoolExecutor(24) as threads:
        replies = list(threads.map(lambda _: client.search(text="a red circle", rerank=40), range(24)))
        assert {reply.status for reply in replies} <= {200, 503}
        assert sum(reply.status == 200 for reply in replies) >= RERANKING
        assert client.search(text="a red circle", rerank=2).status == 200
