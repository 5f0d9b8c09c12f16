"""Search over a store by HTTP: what is found, by which models, and that a store made anew is noticed."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import content
from PIL import Image
from served import Client, serving

from pipeline.cli import main as cusa_extract
from pipeline.inspection.cli import main as cusa_store
from stores import Store


@pytest.fixture(scope="module")
def client(searched_store: Store) -> Iterator[Client]:
    before = content(searched_store.root)
    with serving(searched_store.root) as client:
        yield client
    assert content(searched_store.root) == before, "nothing in the store changes"


def caption(store: Store, row: int) -> str:
    return str(store.captions["text"][row].as_py())


def run_of(store: Store) -> str:
    return next(one.spec for one in store.manifest.teachers.values() if one.spec.startswith("run:"))


def tower(store: Store, modality: str) -> str:
    return next(name for name in store.manifest.teachers if name.startswith("run-") and name.endswith(modality))


def test_a_caption_finds_its_picture_by_the_trained_run(client: Client, searched_store: Store) -> None:
    """In JSON and on the page; as the features themselves are ranked."""
    for row in (0, 7, 55):
        found = client.search(text=f" {caption(searched_store, row)}\n", count=5).json
        assert found["model"] == run_of(searched_store)
        first = found["results"][0]
        assert first["row"] == first["sample"] == searched_store.captions["sample"][row].as_py()
        assert [one["similarity"] for one in found["results"]] == sorted(
            (one["similarity"] for one in found["results"]), reverse=True
        )
    page = client.page(q=caption(searched_store, 7)).text
    assert page.index(f"/thumbnail/{searched_store.captions['sample'][7].as_py()}?") < page.index(
        'class="hit"', page.index('class="hit"') + 1
    )
    assert "<script>" not in page


def test_images_find_captions_and_neighbours(client: Client, searched_store: Store) -> None:
    data = base64.b64encode(searched_store.images[3]).decode()
    own = client.search(image=data, count=1).json["results"][0]
    assert (own["row"], round(own["similarity"], 2)) == (3, 1.0)
    captions = client.search(image=data, modality="text", count=3).json["results"]
    assert captions[0]["sample"] == 3
    near = client.search(row=3, count=79).json["results"]
    assert sorted(one["row"] for one in near) == [row for row in range(80) if row != 3]
    vectors = searched_store.features(tower(searched_store, "image"))
    cosines = vectors.gather(np.arange(80)).astype(np.float32) @ vectors.gather(np.array([3]))[0].astype(np.float32)
    assert [one["similarity"] for one in near] == pytest.approx(np.sort(cosines[np.arange(80) != 3])[::-1], abs=2e-3)
    by_form = html.unescape(client.form(searched_store.images[3], find="text").text)
    assert all(caption(searched_store, row) in by_form for row in range(15, 20))


def test_a_text_and_an_image_weigh_as_asked(client: Client, searched_store: Store) -> None:
    image, text = base64.b64encode(searched_store.images[3]).decode(), caption(searched_store, 100)
    rows = {
        weight: [
            one["row"]
            for one in client.search(text=text, image=image, text_weight=weight, image_weight=1 - weight).json[
                "results"
            ]
        ]
        for weight in (0.0, 0.5, 1.0)
    }
    assert rows[0.0] == [one["row"] for one in client.search(image=image).json["results"]]
    assert rows[1.0] == [one["row"] for one in client.search(text=text).json["results"]]
    assert {3, searched_store.captions["sample"][100].as_py()} <= set(rows[0.5][:6])


def test_splits_and_labels_filter(client: Client, searched_store: Store) -> None:
    store, text = searched_store, caption(searched_store, 7)
    test = store.rows("test", "sample")
    found = client.search(text=text, split="test", count=100).json["results"]
    assert [sorted(one["row"] for one in found), {one["split"] for one in found}] == [test.tolist(), {"test"}]
    label = store.samples["label"][0].as_py()
    named = [row for row, one in enumerate(store.samples["label"].to_pylist()) if one == label]
    found = client.search(text=text, label=label, count=100).json["results"]
    everywhere = client.search(text=text, count=100).json["results"]
    assert [one["row"] for one in found] == [one["row"] for one in everywhere if one["row"] in named]
    captions = client.search(text=text, label=label, modality="text", split="train", count=1000).json["results"]
    assert {one["sample"] for one in captions} == {row for row in named if row < 48}


def test_two_models_stand_side_by_side(client: Client, searched_store: Store) -> None:
    page = client.page(row=3, of="image", beside="hog-color").text
    assert page.count("<section>") == 2
    one_sided = client.page(q="a red circle", beside="hog-color")
    assert (one_sided.status, "hog-color: has no tower for texts" in one_sided.text) == (200, True)
    described = client.ask("GET", "/api/store").json
    assert described["models"] == {
        "hog-color": ["image"],
        "minilm": ["text"],
        run_of(searched_store): ["image", "text"],
    }
    assert (
        client.search(text=caption(searched_store, 9), modality="text", model="minilm", count=1).json["results"][0][
            "row"
        ]
        == 9
    )


def test_pictures_come_by_row_and_are_kept(client: Client, searched_store: Store) -> None:
    hit = client.search(row=3, count=1).json["results"][0]
    small = client.ask("GET", hit["thumbnail"])
    assert Image.open(io.BytesIO(small.body)).format == "JPEG"
    assert (small.headers["content-type"], "immutable" in small.headers["cache-control"]) == ("image/jpeg", True)
    assert client.ask("GET", hit["thumbnail"], If_None_Match=small.headers["etag"]).status == 304
    assert client.ask("GET", hit["image"]).body == searched_store.images[hit["sample"]]
    assert client.ask("GET", f"/thumbnail/{hit['sample']}").headers["cache-control"] == "private, no-cache"
    assert caption(searched_store, 0) in client.ask("GET", "/sample/0").text.replace("&#39;", "'")


def test_the_description_is_openapi_of_what_is_checked(client: Client) -> None:
    told = client.ask("GET", "/openapi.json").json
    assert told["openapi"].startswith("3.1")
    assert set(told["paths"]) == {"/api/store", "/api/search", "/knn-service"}
    schemas = told["components"]["schemas"]
    assert {"SearchRequest", "KnnRequest", "Found", "Hit", "Described", "Problem"} <= set(schemas)
    assert schemas["SearchRequest"]["properties"]["count"]["maximum"] == 1000


def test_a_store_made_anew_is_noticed(searched_store: Store, tmp_path: Path) -> None:
    shutil.copytree(searched_store.root, tmp_path / "store")
    run = run_of(searched_store)
    with serving(tmp_path / "store") as client:
        assert "@uni" not in client.ask("GET", "/api/store").text
        manifest = tmp_path / "store" / "manifest.json"
        manifest.rename(tmp_path / "aside")
        away = client.search(text="a circle")
        assert (away.status, "being made anew" in away.json["error"]) == (503, True)
        (tmp_path / "aside").rename(manifest)
        assert client.search(text="a circle").status == 200
        result = CliRunner().invoke(cusa_extract, ["--store", str(tmp_path / "store"), "--teacher", f"{run}@uni"])
        assert result.exit_code == 0, result.output
        described = client.ask("GET", "/api/store").json
        assert (described["first"], f"{run}@uni" in described["models"]) == (f"{run}@uni", True)
        assert client.search(row=3, model=f"{run}@uni").status == 200


def test_clip_retrieval_s_own_client_works(client: Client, searched_store: Store, tmp_path: Path) -> None:
    """By text, by image and by embedding. Its package imports Flask and more; the client by itself needs requests."""
    package = importlib.util.find_spec("clip_retrieval")
    if package is None or package.origin is None:
        pytest.skip("needs clip_retrieval, which is no part of the project")
    found = importlib.util.spec_from_file_location("clip_client", Path(package.origin).with_name("clip_client.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    store = searched_store
    asked = module.ClipClient(f"{client.url}/knn-service", run_of(store), num_images=5, deduplicate=False)
    by_text = asked.query(text=caption(store, 7))
    assert by_text[0]["id"] == store.captions["sample"][7].as_py()
    assert {"id", "similarity", "caption", "url"} <= by_text[0].keys()
    assert len(by_text) == 5
    (tmp_path / "3.png").write_bytes(store.images[3])
    assert asked.query(image=str(tmp_path / "3.png"))[0]["id"] == 3
    vector = store.features(tower(store, "image")).gather(np.array([5]))[0].astype(float).tolist()
    assert asked.query(embedding_input=vector)[0]["id"] == 5


def test_knn_service_answers_as_clip_retrieval_does(client: Client, searched_store: Store, tmp_path: Path) -> None:
    store = searched_store

    def knn(**asked: object) -> list[dict[str, object]]:
        whole = {"num_images": 3, "num_result_ids": 5, "indice_name": run_of(store), "modality": "image", **asked}
        whole |= {"use_safety_model": True, "use_mclip": False, "aesthetic_score": 9, "aesthetic_weight": 0.5}
        return client.ask("POST", "/knn-service", json.dumps(whole).encode()).json

    found = knn(text=caption(store, 7))
    assert found[0]["id"] == store.captions["sample"][7].as_py()
    assert [set(one) for one in found] == [{"id", "similarity", "caption", "url", "key"}] * 3 + [
        {"id", "similarity"}
    ] * 2
    assert client.ask("GET", str(found[0]["url"]).removeprefix(client.url)).body == store.images[found[0]["id"]]
    assert knn(image=base64.b64encode(store.images[3]).decode())[0]["id"] == 3
    vector = store.features(tower(store, "image")).gather(np.array([5]))[0].astype(float).tolist()
    assert knn(embedding_input=vector)[0]["id"] == 5
    everything = knn(embedding_input=vector, num_result_ids=80)
    distinct = knn(embedding_input=vector, num_result_ids=80, deduplicate=True)
    assert len(distinct) < len(everything)
    assert distinct[0]["id"] == 5
    in_test = knn(text="a circle", indice_name=f"{run_of(store)}|test")
    assert in_test
    assert all(int(one["id"]) >= 60 for one in in_test)  # type: ignore[call-overload]
    assert "opens no addresses" in knn(image_url="http://127.0.0.1/x.png")["error"]  # type: ignore[call-overload]
    assert f"{run_of(store)}|test" in client.ask("GET", "/indices-list").json


def test_lists_are_browsed_marked_and_exported(searched_store: Store, tmp_path: Path) -> None:
    """What is marked stays, apart from the store and its lists, until the data changes."""
    store = tmp_path / "store"
    shutil.copytree(searched_store.root, store)
    with serving(store) as client:
        assert "cusa-store missing" in client.ask("GET", "/lists/missing/train").text
        for kind in ("missing", "suspects"):
            assert CliRunner().invoke(cusa_store, [kind, str(store), "--count", "30"]).exit_code == 0
        before = content(tmp_path)
        listed = pq.read_table(tmp_path / "store-missing-train" / "missing.parquet").to_pylist()
        shown = html.unescape(client.ask("GET", "/lists/missing/train").text)
        assert all(row["caption"] in shown for row in listed[:24])
        assert "page 1 of 2" in shown
        for number, mark in ((25, "right"), (3, "wrong"), (4, "right"), (4, "")):
            seen = {name: listed[number][name] for name in ("caption_row", "image_row")}
            body = urllib.parse.urlencode({"number": number, "mark": mark, **seen}).encode()
            form = {"Content_Type": "application/x-www-form-urlencoded"}
            reply = client.ask("POST", "/lists/missing/train/mark", body, **form)
            assert (reply.status, reply.headers["location"].endswith(f"#pair-{number}")) == (303, True)
        other = urllib.parse.urlencode({"number": 5, "mark": "wrong", **seen}).encode()
        assert client.ask("POST", "/lists/missing/train/mark", other, **form).status == 409, "not what was seen"
        assert client.ask("GET", "/lists/missing/train").text.count('aria-pressed="true"') == 1
        assert "30 pairs, 2 marked" in client.ask("GET", "/lists").text
        marked = pq.read_table(io.BytesIO(client.ask("GET", "/lists/missing/train/marks.parquet").body)).to_pylist()
        expected = [(listed[25], "right"), (listed[3], "wrong")]
        assert [(one["caption_row"], one["image_row"], one["caption"], one["mark"]) for one in marked] == [
            (row["caption_row"], row["image_row"], row["caption"], mark) for row, mark in expected
        ]
        lines = client.ask("GET", "/lists/missing/train/marks.csv").text.splitlines()
        assert [line.rpartition(",")[2] for line in lines] == ['"mark"', '"right"', '"wrong"']
        assert client.ask("GET", "/lists/suspects/train").status == 200
        assert content(tmp_path).items() >= before.items(), "the lists stay as they were"
    again = CliRunner().invoke(cusa_store, ["missing", str(store), "--count", "30"])
    assert again.exit_code == 0, "marks are not in the way of a new list"
