"""Weights, records, vocabularies and configurations of strangers: what they claim is checked before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from tiny_rerankers import tiny_x2vlm, x2vlm_file

from models.checkpoint import read_record
from models.sgraf.published import Sizes, write_published
from models.sgraf.student import SgrafStudent, load_sgraf
from models.sgraf.vocabulary import SPECIAL, Vocabulary
from models.x2vlm_files import load_x2vlm
from stores import StudentError
from stores.errors import CheckpointError, WeightsError
from stores.parameters import Sgraf

DEEP = "[" * 200_000
RECORDS = {
    "list": "[1]",
    "text": '"x"',
    "deep": DEEP,
    "deep-inside": f'{{"format": 4, "parameters": {"[" * 100}{"]" * 100}}}',
    "parameters": '{"format": 4, "parameters": [1]}',
    "frozen": '{"format": 4, "frozen": [1]}',
}
VOCABULARIES = {"list": "[]", "words-list": '{"word2idx": []}', "text": '{"word2idx": "<pad>"}', "deep": DEEP}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_checkpoint_s_record_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    save_file({"model.x": torch.zeros(1)}, tmp_path / "x.safetensors", {"cusa": RECORDS[kind]})
    with pytest.raises(CheckpointError):
        read_record(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(VOCABULARIES[kind])
    with refused(StudentError, path=tmp_path / "v.json"):
        Vocabulary.read(tmp_path / "v.json")


def published(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Write a tiny SGR as its authors' code does, and change what the file holds."""
    sizes = Sizes(words=8, regions=4, region=6, word=5, dim=8, similarity=4)
    write_published(SgrafStudent("SGR", sizes, "regions", None), path)
    held = torch.load(path, weights_only=False)
    change(held)
    torch.save(held, path)
    return f"SGR/{path}"


def words(*shape: int) -> Callable[[dict[str, Any]], object]:
    """Embed so many words by a tensor without strides: four bytes that claim to be terabytes."""
    return lambda held: held["model"][1].update({"embed.weight": torch.zeros(1).expand(*shape)})


CLAIMS = {"all-alike": words(10**12, 5), "wide": words(8, 10**9), "none": words(0, 0), "flat": words(40)}


@pytest.mark.parametrize("kind", CLAIMS)
def test_published_weights_that_claim_what_they_do_not_hold_are_refused(kind: str, tmp_path: Path) -> None:
    name = published(tmp_path / "m.pth.tar", CLAIMS[kind])
    with refused(WeightsError, path=tmp_path / "m.pth.tar"):
        load_sgraf(name, Sgraf())


@pytest.mark.parametrize(
    "data", ["../../etc/x", "a\0b", "..", "a" * 5000, "\ud800"], ids=["path", "nul", "up", "long", "half"]
)
def test_what_a_file_calls_its_data_never_becomes_a_path(data: str, tmp_path: Path) -> None:
    name = published(tmp_path / "m.pth.tar", lambda held: setattr(held["opt"], "data_name", data))
    assert load_sgraf(name, Sgraf()).vocabulary is None
    numbers = {word: number for number, word in enumerate([*SPECIAL, "a", "b", "c", "d"])}
    (tmp_path / "vocab.json").write_text(json.dumps({"word2idx": numbers}))
    assert len(load_sgraf(name, Sgraf()).vocabulary) == 8, "the only one that lies beside it"


@pytest.mark.parametrize(
    ("key", "shape"),
    [("patch_embed.proj.weight", (8, 3, 0, 0)), ("blocks.0.attn.relative_position_bias_table", (12, 0))],
    ids=["patch", "heads"],
)
def test_x2vlm_without_patches_or_heads_is_refused(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    file = x2vlm_file(tmp_path / "m.th", tiny_x2vlm())
    held = torch.load(file, weights_only=True)
    held["model"][f"vision_encoder.{key}"] = torch.zeros(shape)
    torch.save(held, file)
    with refused(WeightsError, path=Path(file)):
        load_x2vlm(str(file))


LEVELS = "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 60))
CONFIGS = {
    "aliases": f"a0: &a0 {{q: 1}}\n{LEVELS}z: {{heads: 4}}\n",
    "aliased-value": f"a0: &a0 {{q: 1}}\n{LEVELS}num_attention_heads: *a59\nheads: 4\n",
    "itself": "a: &a\n  b: *a\nz: {heads: 4}\n",
    "deep": "[" * 500,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_s_sections_are_read_once_each(kind: str, tmp_path: Path) -> None:
    file = x2vlm_file(tmp_path / "m.th", tiny_x2vlm())
    if kind != "deep":  # of which nothing is read
        torch.save({"model": torch.load(file, weights_only=True)["model"]}, file)
    (tmp_path / "config.yaml").write_text(CONFIGS[kind])
    load_x2vlm(str(file))
