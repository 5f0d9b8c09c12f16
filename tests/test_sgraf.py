"""SGR and SAF against the equations, pair by pair; their files, their words, and what a training makes of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from test_core_students import QUICK
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from models.encoded import concatenated
from models.inputs import Padded
from models.recurrent import states_of
from models.sgraf import SgrafStudent, Vocabulary, similarity, write_published
from models.sgraf.published import OPTIONS, Sizes
from models.sgraf.vocabulary import SPECIAL
from models.students import load_student
from stores.errors import StudentError, WeightsError
from stores.parameters import Sgraf, Student
from train.evaluation.kept_parts import PartsOfSplit, PartsPolicy
from train.evaluation.similarities import similarities
from train.fit.processes import make_accelerator

SIZES = Sizes(words=20, regions=4, region=7, word=5, dim=12, similarity=6)
LENGTHS = (4, 2, 7, 4, 1)


def student(kind: str, seed: int = 0) -> SgrafStudent:
    """A small one in float64, far from its start, without dropout."""
    torch.manual_seed(seed)
    model = SgrafStudent(kind, SIZES, "regions", None).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.3, 1.2)
    return model


def items(images: int = 6) -> tuple[Tensor, Padded]:
    """Regions of images; words of captions, with nonsense in the padding."""
    generator = torch.Generator().manual_seed(1)
    regions = torch.rand(images, 4, 7, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 20, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return regions, Padded(tokens, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None])


def unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().sum(dim=-1, keepdim=True).sqrt() + 1e-8)


def batch_norm(values: Tensor, dims: tuple[int, ...], shape: tuple[int, ...], norm: Any, training: bool) -> Tensor:
    mean, variance = norm.running_mean.view(shape), norm.running_var.view(shape)
    if training:
        mean = values.mean(dim=dims, keepdim=True)
        variance = (values - mean).square().mean(dim=dims, keepdim=True)
    return (values - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def by_the_equations(model: SgrafStudent, regions: Tensor, captions: list[Tensor]) -> Tensor:
    """The scores, one caption and one image after another, by the numbers of the paper and its appendix."""
    part, training = model.sim_enc, model.training
    local = unit(regions @ model.img_enc.fc.weight.T + model.img_enc.fc.bias)
    whole = part.v_global_w
    a = whole.embedding_local[0](local)
    a = batch_norm(a, (0, 2), (1, -1, 1), whole.embedding_local[1], training).tanh()
    b = whole.embedding_global[0](local.mean(dim=1))
    b = batch_norm(b, (0,), (1, -1), whole.embedding_global[1], training).tanh()
    weights = whole.embedding_common[0](a * b[:, None]).softmax(dim=1)
    images = unit((weights * local).sum(dim=1))
    columns = []
    for tokens in captions:
        states = model.txt_enc.cap_rnn(model.txt_enc.embed(tokens)[None])[0][0]
        words = unit((states[:, :12] + states[:, 12:]) / 2)
        a = part.t_global_w.embedding_local[0](words).tanh()
        b = part.t_global_w.embedding_global[0](words.mean(dim=0)).tanh()
        weights = part.t_global_w.embedding_common[0](a * b).softmax(dim=0)
        caption = unit((weights * words).sum(dim=0))
        pairs = torch.stack([_nodes(part, local[i], images[i], words, caption) for i in range(len(local))])
        columns.append(_graph(part, pairs) if model.kind == "SGR" else _filter(part, pairs, training))
    return torch.stack(columns, dim=1)


def _nodes(part: Any, regions: Tensor, image: Tensor, words: Tensor, caption: Tensor) -> Tensor:
    s = nn.functional.leaky_relu(regions @ words.T, 0.1)
    s = unit(s)
    nodes = [unit(part.sim_tranglo_w((image - caption) ** 2))]
    for number, word in enumerate(words):
        context = unit((torch.softmax(9 * s[:, number], dim=0)[:, None] * regions).sum(dim=0))
        nodes.append(unit(part.sim_tranloc_w((context - word) ** 2)))
    return torch.stack(nodes)


def _graph(part: Any, pairs: Tensor) -> Tensor:
    for step in part.SGR_module:
        edges = torch.softmax(step.graph_query_w(pairs) @ step.graph_key_w(pairs).mT, dim=-1)
        pairs = torch.relu(step.sim_graph_w(edges @ pairs))
    return torch.sigmoid(part.sim_eval_w(pairs[:, 0]))[:, 0]


def _filter(part: Any, pairs: Tensor, training: bool) -> Tensor:
    raw = part.SAF_module.attn_sim_w(pairs)[..., 0]
    gates = torch.sigmoid(batch_norm(raw, (0, 1), (1, 1), part.SAF_module.bn, training))
    gates = gates / (gates.sum(dim=1, keepdim=True) + 1e-8)
    return torch.sigmoid(part.sim_eval_w(unit((gates[..., None] * pairs).sum(dim=1))))[:, 0]


def scored(model: SgrafStudent, regions: Tensor, captions: Padded) -> Tensor:
    # As a caller from outside gives them: numbers and mask, in a plain tuple.
    return model.scorer.matrix(model.encode("image", regions), model.encode("text", (*captions,)))


@pytest.mark.parametrize("recomputing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("training", [False, True], ids=["measuring", "training"])
@pytest.mark.parametrize("kind", ["SGR", "SAF"])
def test_scores_and_gradients_are_those_of_the_equations(
    kind: str, training: bool, recomputing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of three pairs of four words, too."""
    regions, captions = items()
    wanted = torch.randn(len(regions), len(LENGTHS), dtype=torch.float64)
    model = student(kind).train(training)
    cut = [tokens[:length] for tokens, length in zip(captions.values, LENGTHS, strict=True)]
    expected = by_the_equations(model, regions, cut)
    (expected * wanted).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model = student(kind).train(training)
    if recomputing:
        model.set_grad_checkpointing()
        monkeypatch.setitem(similarity.BLOCK, "cpu", 3 * 4 * 12 * 8)
    found = scored(model, regions, captions)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert found.std() > 0.001
    (found * wanted).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-10, atol=1e-10, msg=name)
    # Those cannot have one: keys' biases and what a softmax or a normalisation cancels.
    assert sum(gradient.abs().max() > 1e-6 for gradient in gradients.values()) >= 2 / 3 * len(gradients)


def test_a_gru_keeps_its_precision_under_autocast() -> None:
    """On CUDA it would be in float16, though a training is in bf16."""
    encoder = student("SGR").txt_enc.float().eval()
    tokens, lengths = torch.randint(1, 20, (3, 5)), torch.tensor([5, 2, 3])
    expected = encoder(tokens, lengths)
    lowered = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)]).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder(tokens, lengths), expected, rtol=0, atol=0)
        assert states_of(encoder.cap_rnn, lowered)[1].dtype == torch.float32


@pytest.mark.parametrize("kind", ["SGR", "SAF"])
def test_neither_padding_nor_company_nor_order_changes_a_score(kind: str) -> None:
    model = student(kind).eval()
    regions, captions = items()
    images = model.encode("image", regions)
    together = scored(model, regions, captions)
    alone = [
        model.encode("text", Padded(captions.values[[row], :length], captions.mask[[row], :length]))
        for row, length in enumerate(LENGTHS)
    ]
    for row, caption in enumerate(alone):
        torch.testing.assert_close(model.scorer.matrix(images, caption)[:, 0], together[:, row])
    texts = concatenated(alone)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model.scorer.matrix(images, texts.take(order)), together[:, order])
    torch.testing.assert_close(model.scorer.pairs(images.take(order), texts), together[order].diagonal())


def test_parts_that_lie_on_disk_score_as_those_in_memory(tmp_path: Path) -> None:
    model = student("SGR").float().eval()
    regions, captions = items()
    with torch.inference_mode():
        both = model.encode("image", regions.float()), model.encode("text", captions)
    on_disk = []
    for encoded in both:
        kept = PartsOfSplit(make_accelerator(QUICK), encoded.size, PartsPolicy(folder=tmp_path, limit=0))
        kept.add(encoded.given_parts, encoded.mask)
        parts, mask = kept.whole()
        assert parts is not None
        assert parts.dtype == torch.float16
        on_disk.append(encoded._replace(parts=parts, mask=mask))
    every = np.arange(both[0].size), np.arange(both[1].size)
    expected, found = (
        similarities(model.scorer, *pair, torch.device("cpu"), tmp_path).block(*every) for pair in (both, on_disk)
    )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_saf_s_running_statistics_are_those_of_caption_after_caption() -> None:
    model, regions, captions = student("SAF").train(), *items()
    norm = nn.BatchNorm1d(1).double()
    norm.load_state_dict(model.sim_enc.SAF_module.bn.state_dict())
    texts, images = model.encode("text", captions), model.encode("image", regions)
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            one = texts.take(slice(row, row + 1))
            nodes = []
            model.sim_enc.SAF_module.register_forward_pre_hook(lambda _, given, kept=nodes: kept.append(given[0]))
            model.eval().scorer.matrix(images, one._replace(mask=None, parts=one.parts[:, :length]))
            norm(model.sim_enc.SAF_module.attn_sim_w(nodes[0]).reshape(-1, 1))
        model.train().scorer.matrix(images, texts)
    for name, expected in norm.state_dict().items():
        torch.testing.assert_close(model.sim_enc.SAF_module.bn.state_dict()[name], expected, msg=name)


def publish(folder: Path, kind: str, **changes: Any) -> Path:
    """A file as the authors' code writes it, with random weights, and its vocabulary beside it."""
    parts: list[dict[str, Tensor]] = [{}, {}, {}]
    for name, tensor in student(kind).float().state_dict().items():
        prefix, _, key = name.partition(".")
        parts[("img_enc", "txt_enc", "sim_enc").index(prefix)][key] = tensor
    options = argparse.Namespace(module_name=kind, data_name="f30k_precomp", learning_rate=2e-4, bi_gru=True)
    held = {"epoch": 3, "model": parts, "best_rsum": 491.1, "opt": options, "Eiters": 9, **changes}
    torch.save(held, folder / "model_best.pth.tar", _use_new_zipfile_serialization=False)
    words = [*SPECIAL, *(f"w{number}" for number in range(16))]
    numbered = {"word2idx": {word: n for n, word in enumerate(words)}, "idx2word": dict(enumerate(words)), "idx": 20}
    (folder / "f30k_precomp_vocab.json").write_text(json.dumps(numbered))
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("kind", ["SGR", "SAF"])
def test_a_published_file_loads_scores_and_is_written_bit_for_bit(kind: str, tmp_path: Path) -> None:
    path = publish(tmp_path, kind)
    model = load_student(Student(model=f"sgraf:{kind}/{path}")).eval()
    regions, captions = items()
    expected = student(kind).eval()
    torch.testing.assert_close(
        scored(model, regions.float(), captions), scored(expected, regions, captions).float(), rtol=1e-4, atol=1e-5
    )
    numbers = model.encode("text", (captions.values, captions.mask.int())).parts
    assert torch.equal(numbers, model.encode("text", captions).parts)
    texts = model.inputs["text"].texts(["W3 w5.", "nothing"])
    assert texts.values[:, :5].tolist() == [[1, 7, 9, 3, 2], [1, 3, 2, 0, 0]]
    write_published(model, tmp_path / "again.pth.tar")
    with torch.serialization.safe_globals([argparse.Namespace]):
        one, other = (torch.load(file, weights_only=True) for file in (path, tmp_path / "again.pth.tar"))
    assert one.keys() == other.keys()
    # What the file says beside the weights stays, and the authors' code finds every option that it reads.
    assert {name: one[name] for name in ("epoch", "best_rsum", "Eiters")} == {
        name: other[name] for name in ("epoch", "best_rsum", "Eiters")
    }
    assert vars(other["opt"]).items() >= vars(one["opt"]).items()
    assert vars(other["opt"]).keys() >= {*OPTIONS, "vocab_size", "word_dim", "img_dim", "embed_size", "sim_dim"}
    for found, wanted in zip(other["model"], one["model"], strict=True):
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    path = publish(tmp_path, "SGR")
    with refused(WeightsError, path=path, found="SGR", expected="SAF"):
        load_student(Student(model=f"sgraf:SAF/{path}"))
    with refused(WeightsError, problem="steps of SGR", found=2, expected=3):
        steps = publish(tmp_path, "SGR", opt=argparse.Namespace(sgr_step=2))
        load_student(Student(model=f"sgraf:SGR/{steps}"))
    path = publish(tmp_path, "SGR")
    with refused(StudentError, problem="regions of an image", found=5, expected=4):
        load_student(Student(model=f"sgraf:SGR/{path}")).encode("image", torch.rand(2, 5, 7))
    beside = tmp_path / "f30k_precomp_vocab.json"
    Vocabulary.of(["one two"] * 4, sentences=False).write(beside)
    with refused(StudentError, path=beside, found="6 words", expected=f"20, as {path} embeds"):
        load_student(Student(model=f"sgraf:SGR/{path}"))
    beside.unlink()
    without = load_student(Student(model=f"sgraf:SGR/{path}"))
    with pytest.raises(StudentError, match=r"student\.sgraf\.vocabulary"):
        without.inputs["text"].texts(["one"])
    expected = "model_best.pth.tar of SGRAF's authors, of weights alone, or student.safetensors of sgraf"
    for changes in ({"opt": Malicious()}, {"model": []}, {"model": [{}, {}, {}]}):
        with refused(WeightsError, path=publish(tmp_path, "SGR", **changes), expected=expected):
            load_student(Student(model=f"sgraf:SGR/{path}"))


def test_a_vocabulary_is_of_words_seen_four_times_and_keeps_its_file(tmp_path: Path) -> None:
    """ASCII letters alone become lower case, a full stop inside a line stays, and longer captions are cut."""
    texts = ["A dog. Über the dog!"] * 4 + ["cat"] * 3
    Vocabulary.of(texts, sentences=False).write(tmp_path / "v.json")
    held = json.loads((tmp_path / "v.json").read_text())
    assert list(held["word2idx"]) == [*SPECIAL, "!", "a", "dog", "dog.", "the", "Über"]
    vocabulary = Vocabulary.read(tmp_path / "v.json")
    assert vocabulary.tokens(["the DOG über cat", "dog " * 300])[:, [0, 1, 2, 3, 4, 5, 127]].tolist() == [
        [1, 8, 6, 3, 3, 2, 0],
        [1, 6, 6, 6, 6, 6, 2],
    ]
    settings = Sgraf(vocabulary=str(tmp_path / "v.json"), vocabulary_sha256="0" * 64, dim=8, word=4, similarity=4)
    with refused(StudentError, path=tmp_path / "v.json", expected="0" * 64):
        load_student(Student(model="sgraf:SGR", sgraf=settings))
    model = load_student(Student(model="sgraf:SGR", sgraf=replace(settings, vocabulary_sha256=None, shape=[4, 7])))
    assert model.encode("image", torch.rand(2, 4, 7)).parts.shape == (2, 4, 8)
