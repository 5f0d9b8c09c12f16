"""ECCV Caption and CxC on made-up embeddings of COCO's real ids, and the ids themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from stores import CusaError
from train.evaluation.eccv import _package, coco_ids, eccv_caption
from train.evaluation.evaluate import cross_modal
from train.evaluation.metrics import many_to_many, most_relevant
from train.evaluation.rankings import CosineRows, top
from train.evaluation.similarities import CosineSimilarities


@pytest.fixture(scope="module")
def package() -> Any:
    """The authors' package with its data."""
    try:
        return _package()
    except CusaError:
        pytest.skip("needs the extra eccv")


@pytest.fixture(scope="module")
def coco(package: Any) -> dict[str, Any]:
    """Embeddings that find some of what they should, by COCO's ids, in shuffled order and with a caption too many."""
    random = np.random.default_rng(0)
    owner = {caption: image for image, captions in package.coco_gts["i2t"].items() for caption in captions}
    images, captions = (random.permutation(np.array(list(ids))) for ids in (package.coco_gts["i2t"], owner))
    place = {image: row for row, image in enumerate(images.tolist())}
    own = np.array([place[owner[caption]] for caption in captions.tolist()])
    vectors = random.standard_normal((len(images), 16)).astype(np.float32)
    texts = vectors[own] + random.standard_normal((len(captions), 16)).astype(np.float32)
    return {
        "images": torch.from_numpy(vectors),
        "texts": torch.from_numpy(np.vstack([texts, vectors[:1]])),
        "image_ids": images,
        "caption_ids": np.append(captions, 10**9),
        "own": own,
    }


def test_the_figures_are_those_of_our_own_metrics_on_their_truth(package: Any, coco: dict[str, Any]) -> None:
    measured = eccv_caption(CosineSimilarities(coco["images"], coco["texts"]), coco["image_ids"], coco["caption_ids"])
    images, texts = coco["images"], coco["texts"][:-1]
    count = len(texts)
    own = sparse.csr_array((np.ones(count, dtype=bool), (coco["own"], np.arange(count))), shape=(len(images), count))
    ours = cross_modal(CosineSimilarities(images, texts), own)
    for direction, queries, ids, candidates, others, theirs in (
        ("image_to_text", images, coco["image_ids"], texts, coco["caption_ids"], "i2t"),
        ("text_to_image", texts, coco["caption_ids"], images, coco["image_ids"], "t2i"),
    ):
        assert measured["coco_5k"][direction] == pytest.approx(ours[direction])
        truth = package.eccv_gts[theirs]
        asked = np.flatnonzero(np.isin(ids[: len(queries)], list(truth)))
        # Two of the captions that the truth names are in nobody's test split; for the package they count in R.
        within = [row for row in asked if set(truth[int(ids[row])]) <= set(others[: len(candidates)].tolist())]
        assert len(asked) - len(within) <= 2
        relevant = sparse.csr_array(
            np.array([np.isin(others[: len(candidates)], truth[int(ids[row])]) for row in within])
        )
        rows = CosineRows(queries=queries[within], candidates=candidates)
        expected = many_to_many(top(rows, most_relevant(relevant)), relevant)
        assert measured["eccv_caption"][direction] == pytest.approx(expected, abs=100 * 2 / len(asked))
        assert all(1 < value < 99 for value in measured["eccv_caption"][direction].values())
        assert measured["cxc"][direction]["R@1"] >= measured["coco_5k"][direction]["R@1"] - 0.1


def test_a_part_of_the_test_split_is_refused(coco: dict[str, Any]) -> None:
    with pytest.raises(CusaError, match=r"5,000 images: 1 of them are missing here \(first: \d+\) and 0 are there"):
        eccv_caption(CosineSimilarities(coco["images"][1:], coco["texts"]), coco["image_ids"][1:], coco["caption_ids"])
    twice = coco["caption_ids"].copy()
    twice[-1] = twice[0]
    with pytest.raises(CusaError, match=r"25,000 captions: 0 of them are missing here .* 1 are there twice"):
        eccv_caption(CosineSimilarities(coco["images"], coco["texts"]), coco["image_ids"], twice)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(CusaError, match=r"pip install -e '.\[eccv\]'"):
        eccv_caption(CosineSimilarities(torch.eye(1), torch.eye(1)), np.array([1]), np.array([1]))


def store_of(images: list[str], texts: list[str], owners: list[int]) -> Any:
    """What `coco_ids` reads of a store: its second split begins at sample 1 and caption 1."""
    rows = {"sample": np.arange(1, len(images)), "caption": np.arange(1, len(texts))}
    return SimpleNamespace(
        root="store",
        samples=pa.table({"source_id": images}),
        captions=pa.table({"text": texts, "sample": owners}),
        rows=lambda _, level: rows[level],
    )


def test_captions_are_found_by_image_and_text(tmp_path: Path) -> None:
    store = store_of(["5", "9", "7"], ["x", "a dog", "a cat", "a dog", "a dog"], [0, 1, 1, 2, 2])
    coco, karpathy = tmp_path / "captions_val2014.json", tmp_path / "dataset_coco.json"
    triples = [(7, "a dog", 70), (9, " a cat\n", 91), (7, "a dog ", 71), (9, "a dog", 90), (5, "x", 50)]
    coco.write_text(
        json.dumps({"annotations": [dict(zip(("image_id", "caption", "id"), t, strict=True)) for t in triples]})
    )
    karpathy.write_text(
        json.dumps({"images": [{"cocoid": i, "sentences": [{"raw": text, "sentid": c}]} for i, text, c in triples]})
    )
    for path in (coco, karpathy):
        images, captions = coco_ids(store, "test", path)
        assert images.tolist() == [9, 7]
        assert captions.tolist() == [90, 91, 70, 71]
    coco.write_text(json.dumps({"annotations": [{"image_id": 9, "caption": "another", "id": 1}]}))
    with pytest.raises(CusaError, match="has no caption 'a dog' of image 9, which the split test of store holds"):
        coco_ids(store, "test", coco)
    for broken in ("{", "[]", '{"images": [{"sentences": [{}]}]}'):
        coco.write_text(broken)
        with pytest.raises(CusaError, match="does not give COCO's caption ids"):
            coco_ids(store, "test", coco)
