"""The second stage of retrieval against a plain loop; interrupted, on disk, and through cusa-eval."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from refusals import refused
from scipy import sparse
from tiny_rerankers import IMAGES, TEXTS, K, Product, items, scored, tiny_x2vlm, x2vlm_file
from torch import nn

from models.aligned import AlignedModel
from models.encoded import Encoded
from models.scoring import OwnSimilarity
from stores import CusaError, Store
from stores.ownership import in_the_way
from stores.parameters import Rerank
from train.eval_cli import main as cusa_eval
from train.evaluation import reranking
from train.evaluation.embed import embed_split
from train.evaluation.folder import SCORES
from train.evaluation.kept_parts import PartsOfSplit, PartsPolicy
from train.evaluation.rankings import first_ranks
from train.evaluation.reranking import reranked
from train.evaluation.second_stage import SecondStage, by_depth
from train.evaluation.similarities import CosineSimilarities, similarities


def own() -> sparse.csr_array:
    return sparse.csr_array((np.ones(TEXTS, bool), (np.arange(TEXTS) % IMAGES, np.arange(TEXTS))))


@pytest.mark.parametrize("combine", ["replace", "add"])
def test_a_query_s_nearest_are_ranked_anew(combine: str, tmp_path: Path) -> None:
    matcher, (images, texts) = Product(), items()
    found = scored(matcher, tmp_path, combine)
    cosines = nn.functional.cosine_similarity(images.vector[:, None], texts.vector[None], dim=2)
    anew = torch.einsum("nw,mlw->nm", images.parts[:, 0], texts.parts * texts.mask[..., None])
    anew = anew + cosines if combine == "add" else anew
    pairs = set()
    for rows, first, second, turned in (
        (found.rows(), cosines, anew, False),
        (found.columns(), cosines.T, anew.T, True),
    ):
        for query, scores in enumerate(torch.cat(list(rows))):
            nearest = first[query].argsort(descending=True).tolist()
            expected = sorted(nearest[:K], key=lambda one: -second[query, one]) + nearest[K:]
            assert scores.argsort(descending=True).tolist() == expected
            pairs |= {(one, query) if turned else (query, one) for one in nearest[:K]}
    # Every pair once, every image once, and no text with padding.
    assert matcher.pairs == len(pairs) == found.pairs
    assert len(matcher.prepared) == len(set(matcher.prepared)) == IMAGES
    assert set(matcher.lengths) == {1, 2, 3}
    assert not list(tmp_path.iterdir())


def test_what_pads_before_a_text_changes_no_score(tmp_path: Path) -> None:
    """A mask need be no run of the first places."""

    class Masked(nn.Module):
        def prepare_match(self, images: Encoded) -> tuple[torch.Tensor]:
            return (images.parts[:, 0],)

        def match(self, images: tuple[torch.Tensor], texts: Encoded) -> torch.Tensor:
            scores = torch.einsum("pw,plw->p", images[0].expand(texts.size, -1), texts.parts * texts.mask[..., None])
            return torch.stack([torch.zeros_like(scores), scores], dim=1)

    images, texts = items()
    turned = texts._replace(parts=texts.parts.flip(1), mask=texts.mask.flip(1))
    first = CosineSimilarities(images.vector, texts.vector)
    found = [
        reranked(first, Masked(), (images, some), K, "replace", 4, Accelerator(cpu=True), tmp_path)
        for some in (texts, turned)
    ]
    np.testing.assert_allclose(found[0].texts_of_images.scores, found[1].texts_of_images.scores, atol=1e-6)


def test_each_k_follows_from_one_scoring(tmp_path: Path) -> None:
    found = scored(Product(), tmp_path, k=20)
    table = by_depth(found, own())
    assert [row.k for row in table] == [0, 16, 20]
    for row in table[1:]:
        again = scored(Product(), tmp_path, k=row.k)
        ranks = again.ranks(own())
        assert row.recalls[0]["R@1"] == pytest.approx(100 * (ranks[0] < 1).mean())
        assert row.recalls[1]["R@10"] == pytest.approx(100 * (ranks[1] < 10).mean())
        assert row.pairs == again.pairs
    assert table[0].rsum != table[-1].rsum


def test_of_a_part_its_own_candidates_are_reranked(tmp_path: Path) -> None:
    found = scored(Product(), tmp_path)
    some, others = np.array([1, 4, 8]), np.arange(0, TEXTS, 2)
    whole, part = torch.cat(list(found.rows())), torch.cat(list(found.part(some, others).rows()))
    for place, image in enumerate(some):
        assert part[place].argsort().tolist() == whole[image, others].argsort().tolist()
    relevant = sparse.csr_array(np.ones((len(others), len(some)), bool))
    assert not first_ranks(found.part(some, others).columns(), relevant).any()


KILLED = """
import sys
from pathlib import Path
from tiny_rerankers import Product, scored
from train.evaluation import reranking
reranking._SAVE_EVERY = 0.0
scored(Product(killed_at=5), Path(sys.argv[1]))
"""


def test_a_scoring_that_was_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    killed = forked.start(tmp_path / "killed.py", str(tmp_path / "scores"))
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {reranking.PARTIAL, reranking.STATE}
    going_on, whole = Product(), Product()
    found, expected = scored(going_on, tmp_path / "scores"), scored(whole, tmp_path / "other")
    assert len(going_on.prepared) == IMAGES - 4
    assert going_on.pairs < whole.pairs
    assert np.array_equal(found.texts_of_images.scores, expected.texts_of_images.scores)
    assert np.array_equal(found.images_of_texts.scores, expected.images_of_texts.scores)


def test_a_kill_as_scores_begin_leaves_nothing_that_the_next_run_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = np.memmap

    def killed(*arguments: Any, **named: Any) -> None:
        made(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "memmap", killed)
    with pytest.raises(KeyboardInterrupt):
        scored(Product(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        similarities(OwnSimilarity(torch.cdist), *items(), torch.device("cpu"), tmp_path)
    assert {path.name for path in tmp_path.glob("*.partial")} == {"pairs.partial", "scores.partial"}
    assert in_the_way(tmp_path, SCORES) == []


def test_tokens_that_do_not_fit_lie_on_disk(scenes_store: Store, tmp_path: Path) -> None:
    model, accelerator = AlignedModel(tiny_x2vlm_of_64(tmp_path), uni_modal=False), Accelerator(cpu=True)
    split = model, scenes_store, "test", accelerator, 7, 0
    memory = embed_split(*split)
    disk = embed_split(*split, policy=PartsPolicy(True, tmp_path / "run", 0))
    none = embed_split(*split, policy=PartsPolicy(wanted=False))
    for modality in ("image", "text"):
        assert disk[modality].parts.dtype == torch.float16
        torch.testing.assert_close(disk[modality].parts.float(), memory[modality].parts, atol=2e-3, rtol=2e-3)
        assert torch.equal(disk[modality].vector, memory[modality].vector)
        assert none[modality].parts is None
    assert torch.equal(disk["text"].mask, memory["text"].mask)
    with refused(CusaError, problem="a part's number", found="1e+05"):
        PartsOfSplit(accelerator, 3, PartsPolicy(True, tmp_path, 0)).add(torch.full((3, 2, 4), 1e5), None)
    assert not list((tmp_path / "run").iterdir())
    stage = SecondStage(Rerank(k=5), model, accelerator)
    first = CosineSimilarities(memory["image"].vector, memory["text"].vector)
    scores = [stage.over(first, one, tmp_path / "run").texts_of_images.scores for one in (memory, disk)]
    np.testing.assert_allclose(*scores, atol=5e-3)


def tiny_x2vlm_of_64(folder: Path) -> nn.Module:
    from models.x2vlm_files import load_x2vlm

    return load_x2vlm(f"{x2vlm_file(folder / 'x2vlm.th', tiny_x2vlm())}@64")


def test_cusa_eval_reranks_any_first_stage(scenes_store: Store, scenes_run: Path, tmp_path: Path) -> None:
    file, out = x2vlm_file(tmp_path / "x2vlm.th", tiny_x2vlm()), tmp_path / "out"
    command = ["--model", str(scenes_run), "--store", str(scenes_store.root), "--task", "retrieval", "--out", str(out)]
    more = ["--rerank", f"x2vlm:{file}@64", "--rerank-k", "17", "--device", "cpu", "--workers", "0"]
    cusa_eval([*command, *more], standalone_mode=False)
    result = json.loads((out / "figures.json").read_bytes())["results"][0]
    (figures,) = result["figures"].values()
    assert figures["reranked"]["RSUM"] != figures["RSUM"]
    assert figures["reranked"].keys() >= {"image_to_text", "text_to_image", "median_rank", "true_relevance"}
    rows = [line for line in (out / "reranking.md").read_text().splitlines() if line[:3] in ("| 0", "| 1")]
    assert [row.split(" | ")[-1].strip(" |") for row in rows][-1] == f"{figures['reranked']['RSUM']:.1f}"
    assert (out / "reranking.png").stat().st_size > 5000
