"""The objective: rows against columns equals the whole batch, tiles equal the plain form, memory is linear."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor, nn

from models.encoded import Encoded, map_tensors
from models.scoring import Cosine, OwnSimilarity
from stores.errors import ParameterError, TrainingError
from stores.parameters import Coordination, Loss
from train.losses import tiles
from train.losses.comparison import Instances
from train.losses.functional import cosine_similarity, csa_loss, info_nce, mixed_targets, usa_loss
from train.losses.objective import Objective, check_modalities, compare, described, make_objective

COUNT, DIM = 22, 8
GROUPS = torch.tensor([0, 0, 1, 2, 3, 1, 4, 0, 5, 6, 7, 8, 9, 9, 10, 11, 12, 13, 13, 13, 14, 15])
SETTINGS = [
    Loss(),
    Loss(alpha=0.3, beta=0.7, mix="add"),
    Loss(alpha=1.5, mix="dot", soft_top_k=4),
    Loss(soft_top_k=3),
    Loss(alpha=0.0),
    Loss(beta=0.0),
    Loss(alpha=0.0, beta=0.0),
    Loss(reduction="reference", teacher_temperature=1.0),
]


def batch(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Embeddings, which follow their teachers somewhat, and temperatures; all want gradients."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(COUNT, DIM, generator=generator, dtype=torch.float64)
    noisy = [base + torch.randn(COUNT, DIM, generator=generator, dtype=torch.float64) for _ in range(4)]
    taus = [torch.tensor(value, dtype=torch.float64) for value in (0.05, 0.45, 0.3, 0.2)]
    inputs = [[tensor.to(dtype).requires_grad_() for tensor in tensors] for tensors in (noisy, taus)]
    return inputs[0], inputs[1]


def pairs(embeddings: list[Tensor]) -> Instances:
    generator = torch.Generator().manual_seed(1)
    teachers = [torch.randn(COUNT, dim, generator=generator).to(embeddings[0].dtype) for dim in (5, 7)]
    image, text, uni_image, uni_text = embeddings
    return Instances(
        {"image": Encoded(image, uni_image), "text": Encoded(text, uni_text)},
        torch.arange(COUNT),
        GROUPS,
        dict(zip(("image", "text"), teachers, strict=True)),
    )


def part(whole: Instances, rows: slice) -> Instances:
    return map_tensors(lambda tensor: tensor[rows], whole)


def learned(loss: Loss, taus: list[Tensor]) -> tuple[Objective, list[Tensor | None]]:
    """The objective with its temperatures at `taus`, and of each of these its parameter, if there is one."""
    objective = make_objective(loss).to(taus[0].dtype)
    parameters: list[Tensor | None] = []
    modules = objective._temperatures()
    for name, tau in zip(("InfoNCE", "CSA", "USA image", "USA text"), taus, strict=True):
        parameters.append(modules[name].log if name in modules else None)
        if name in modules:
            modules[name].log.data.copy_(tau.detach().log())
            modules[name].log.requires_grad_(tau.requires_grad)
    return objective, parameters


def differentiated(total: Tensor, wanted: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients with respect to those that are there."""
    there = [tensor for tensor in wanted if tensor is not None]
    found = iter(torch.autograd.grad(total, there, allow_unused=True))
    return [None if tensor is None else next(found) for tensor in wanted]


def computed(rows: slice | None, loss: Loss, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Any, Any]:
    """The objective of some rows against all columns, its parts and the gradients of all inputs."""
    embeddings, taus = batch(dtype)
    columns = pairs(embeddings)
    objective, parameters = learned(loss, taus)
    total, parts = compare(objective, columns if rows is None else part(columns, rows), columns, Cosine())
    return total.detach(), parts, differentiated(total, [*embeddings, *parameters])


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Equal values, parts and gradients, relative to each one's largest, where the expected are not all zero."""
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=0)
    assert len(found[2]) == len(expected[2])
    for ours, wanted in zip(found[2], expected[2], strict=True):
        assert (ours is None) == (wanted is None)
        if wanted is not None:
            largest = wanted.abs().max().item()
            assert largest > 1e-6
            torch.testing.assert_close(ours, wanted, rtol=0, atol=tolerance * largest)


def tile(monkeypatch: pytest.MonkeyPatch, height: int) -> list[int]:
    """Compute in blocks of `height` rows; the list fills with the rows of each block."""
    monkeypatch.setattr(tiles, "ELEMENTS", height * COUNT)
    heights: list[int] = []
    real = torch.Tensor.softmax

    def watched(logits: Tensor, dim: int) -> Tensor:
        heights.append(len(logits))
        return real(logits, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    return heights


@pytest.mark.parametrize("loss", SETTINGS)
def test_the_objective_is_the_weighted_sum_of_its_losses(loss: Loss) -> None:
    embeddings, taus = batch()
    whole = pairs(embeddings)
    objective, _ = learned(loss, taus)
    cross = cosine_similarity(embeddings[0], embeddings[1])
    expected = {"InfoNCE": info_nce(cross, taus[0], GROUPS, loss.reduction)}
    teachers = [cosine_similarity(features, features) for features in whole.teachers.values()]
    targets = mixed_targets(*teachers, loss.teacher_temperature, loss.mix, loss.soft_top_k)
    if loss.alpha:
        expected["CSA"] = csa_loss(cross, *targets, taus[1])
    if loss.beta:
        among = [cosine_similarity(embedding, embedding) for embedding in embeddings[2:]]
        expected["USA"] = usa_loss(among, targets, taus[2:])
    total, parts = compare(objective, whole, whole, Cosine())
    torch.testing.assert_close(parts, {name: part.detach() for name, part in expected.items()})
    assert not any(part.requires_grad for part in parts.values())
    weights = {"InfoNCE": 1.0, "CSA": loss.alpha, "USA": loss.beta}
    torch.testing.assert_close(total, sum(weights[name] * part for name, part in expected.items()))


@pytest.mark.parametrize("height", [None, 4])
@pytest.mark.parametrize("loss", SETTINGS)
def test_the_mean_over_equal_shares_is_the_whole_batch(
    loss: Loss, height: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = computed(None, loss)
    if height:
        tile(monkeypatch, height)
    shares = [computed(rows, loss) for rows in (slice(0, 11), slice(11, 22))]
    total = (shares[0][0] + shares[1][0]) / 2
    parts = {name: (shares[0][1][name] + shares[1][1][name]) / 2 for name in whole[1]}
    gradients = [a if a is None else (a + b) / 2 for a, b in zip(shares[0][2], shares[1][2], strict=True)]
    close((total, parts, gradients), whole)


@pytest.mark.parametrize("height", [1, 5, 11])
@pytest.mark.parametrize("loss", SETTINGS)
def test_tiles_equal_the_plain_form(loss: Loss, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = computed(None, loss)
    heights = tile(monkeypatch, height)
    close(computed(None, loss), plain)
    assert set(heights) == {height, COUNT % height or height}, "not computed in blocks"


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", SETTINGS)
def test_tiles_equal_the_plain_form_in_float32(loss: Loss, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = computed(None, loss, torch.float32)
    assert plain[0].dtype == torch.float32
    tile(monkeypatch, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tiled = computed(None, loss, torch.float32)
    close(tiled, plain, 1e-5)


def test_half_precision_embeddings_get_gradients_of_their_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = computed(None, Loss(), torch.bfloat16)
    tile(monkeypatch, 5)
    tiled = computed(None, Loss(), torch.bfloat16)
    assert tiled[0].dtype == torch.float32
    assert {gradient.dtype for gradient in tiled[2]} == {torch.bfloat16}
    close((tiled[0], tiled[1], []), (plain[0], plain[1], []), 1e-5)


def test_tiles_scale_with_what_follows_and_give_values_alone_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    tile(monkeypatch, 5)
    embeddings, taus = batch()
    columns = pairs(embeddings)
    objective, _ = learned(Loss(), taus)
    total, parts = compare(objective, columns, columns, Cosine())
    once, thrice = (torch.autograd.grad(total * scale, embeddings[0], retain_graph=True)[0] for scale in (1, 3))
    torch.testing.assert_close(3 * once, thrice)
    with torch.no_grad():
        monkeypatch.setattr(torch.autograd, "grad", None)
        alone, parts_alone = compare(objective, columns, columns, Cosine())
    assert not alone.requires_grad
    torch.testing.assert_close((alone, parts_alone), (total.detach(), parts))


def test_what_wants_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = computed(None, Loss())
    tile(monkeypatch, 5)
    embeddings, taus = batch()
    embeddings[1].requires_grad_(False)
    taus[0].requires_grad_(False)
    columns = pairs(embeddings)
    objective, parameters = learned(Loss(), taus)
    compare(objective, columns, columns, Cosine())[0].backward()
    for tensor, wanted in zip([*embeddings, *parameters], plain[2], strict=True):
        assert tensor is not None
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, wanted)
        else:
            assert tensor.grad is None


def test_a_students_own_similarity_learns_and_is_never_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.rand(DIM, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    calls: list[tuple[int, int]] = []

    def similarity(images: Tensor, texts: Tensor) -> Tensor:
        calls.append((len(images), len(texts)))
        return torch.tanh(images @ weight @ texts.T)

    def own(rows: slice | None) -> tuple[Tensor, dict[str, Tensor], list[Any]]:
        embeddings, taus = batch()
        columns = pairs(embeddings)
        some = columns if rows is None else part(columns, rows)
        objective, parameters = learned(Loss(), taus)
        total, parts = compare(objective, some, columns, OwnSimilarity(similarity))
        return total.detach(), parts, differentiated(total, [*embeddings, *parameters, weight])

    tile(monkeypatch, 5)
    whole = own(None)
    assert calls == [(COUNT, COUNT)], "the transpose serves the other direction"
    first, second = own(slice(0, 11)), own(slice(11, COUNT))
    assert calls[1:3] == [(11, COUNT), (COUNT, 11)]
    parts = {name: (first[1][name] + second[1][name]) / 2 for name in whole[1]}
    gradients = [(a + b) / 2 for a, b in zip(first[2], second[2], strict=True)]
    close(((first[0] + second[0]) / 2, parts, gradients), whole)


def test_soft_labels_need_teachers_and_infonce_does_not() -> None:
    embeddings, taus = batch()
    bare = pairs(embeddings)._replace(teachers={})
    plain, _ = learned(Loss(alpha=0.0, beta=0.0), taus)
    assert list(compare(plain, bare, bare, Cosine())[1]) == ["InfoNCE"]
    assert not plain.soft
    for loss, fault in ((Loss(alpha=0.0), ValueError), (Loss(beta=0.0), TrainingError)):
        softly, _ = learned(loss, taus)
        assert softly.soft
        with pytest.raises(fault, match=r"teacher"):
            compare(softly, bare, bare, Cosine())


MEMORY = """
import torch
from pathlib import Path
from models.encoded import Encoded
from models.scoring import Cosine
from stores.parameters import Coordination, Loss
from train.losses import tiles
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective

def peak(count):
    tensors = [torch.randn(count, 16) for _ in range(6)]
    image, text, uni_image, uni_text = (tensor.requires_grad_() for tensor in tensors[:4])
    encoded = {"image": Encoded(image, uni_image), "text": Encoded(text, uni_text)}
    places = torch.arange(count)
    batch = Instances(encoded, places, places, {"image": tensors[4], "text": tensors[5]})
    compare(make_objective(Loss()), batch, batch, Cosine())[0].backward()
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

tiles.ELEMENTS = 2**17
torch.set_num_threads(1)
print(*(peak(count) for count in (64, 2048, 4096)))
"""


def test_memory_is_linear_in_the_batch() -> None:
    """One 4,096 × 4,096 matrix takes 64 MiB: the whole objective takes less than that."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=root)
    base, half, whole = (int(word) for word in done.stdout.split())
    assert whole - base < 4096**2 * 4
    assert whole - half < 16 * 2**20, "doubling the batch may add what the embeddings take, not a matrix"


def pcmc(weights: dict[str, float]) -> Loss:
    return Loss(original="pcmc", coordination=Coordination(weights=weights))


@pytest.mark.parametrize(
    ("loss", "where", "found"),
    [
        (Loss(recipe="l2rm"), "loss.recipe", "l2rm"),
        (pcmc({"speech/text": 2.0}), "loss.coordination.weights", "speech/text"),
        (pcmc({"speech/speech": 2.0}), "loss.coordination.weights", "speech/speech"),
        (pcmc({"speech/image": 2.0, "image/speech": 1.0}), "loss.coordination.weights", "speech/image"),
    ],
    ids=["l2rm", "strange", "itself", "twice"],
)
def test_a_loss_of_modalities_that_the_student_lacks_is_refused(loss: Loss, where: str, found: str) -> None:
    with refused(ParameterError, where=where, found=found):
        check_modalities(loss, ["image", "speech"])


def test_a_formula_says_only_what_there_is() -> None:
    assert "InfoNCE" not in described(Loss(original="hinge", reduction="reference"))
    assert described(Loss(reduction="reference")).endswith("InfoNCE divided by the batch size once more")
