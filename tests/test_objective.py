"""The objective: rows against columns equals the whole batch, tiles equal the plain form, memory is linear."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.temperatures import Taus
from stores.parameters import Loss
from train.losses import tiles
from train.losses.functional import cosine_similarity, csa_loss, info_nce, mixed_targets, usa_loss
from train.losses.objective import Compared, objective

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


def pairs(embeddings: list[Tensor]) -> Compared:
    generator = torch.Generator().manual_seed(1)
    teachers = [torch.randn(COUNT, dim, generator=generator).to(embeddings[0].dtype) for dim in (5, 7)]
    return Compared(*embeddings, *teachers, GROUPS)


def part(whole: Compared, rows: slice) -> Compared:
    return Compared(*(None if tensor is None else tensor[rows] for tensor in whole))


def computed(rows: slice | None, loss: Loss, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Any, Any]:
    """The objective of some rows against all columns, its parts and the gradients of all inputs."""
    embeddings, taus = batch(dtype)
    columns = pairs(embeddings)
    total, parts = objective(columns if rows is None else part(columns, rows), columns, Taus(*taus), loss)
    gradients = torch.autograd.grad(total, [*embeddings, *taus], allow_unused=True)
    return total.detach(), parts, gradients


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
    cross = cosine_similarity(whole.image, whole.text)
    expected = {"InfoNCE": info_nce(cross, taus[0], GROUPS, loss.reduction)}
    teachers = [cosine_similarity(features, features) for features in whole[4:6] if features is not None]
    targets = mixed_targets(*teachers, loss.teacher_temperature, loss.mix, loss.soft_top_k)
    if loss.alpha:
        expected["CSA"] = csa_loss(cross, *targets, taus[1])
    if loss.beta:
        among = [cosine_similarity(embedding, embedding) for embedding in (whole.uni_image, whole.uni_text)]
        expected["USA"] = usa_loss(*among, *targets, taus[2], taus[3])
    total, parts = objective(whole, whole, Taus(*taus), loss)
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
    total, parts = objective(columns, columns, Taus(*taus), Loss())
    once, thrice = (torch.autograd.grad(total * scale, embeddings[0], retain_graph=True)[0] for scale in (1, 3))
    torch.testing.assert_close(3 * once, thrice)
    with torch.no_grad():
        monkeypatch.setattr(torch.autograd, "grad", None)
        alone, parts_alone = objective(columns, columns, Taus(*taus), Loss())
    assert not alone.requires_grad
    torch.testing.assert_close((alone, parts_alone), (total.detach(), parts))


def test_what_wants_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = computed(None, Loss())
    tile(monkeypatch, 5)
    embeddings, taus = batch()
    embeddings[1].requires_grad_(False)
    taus[0].requires_grad_(False)
    columns = pairs(embeddings)
    objective(columns, columns, Taus(*taus), Loss())[0].backward()
    for tensor, wanted in zip([*embeddings, *taus], plain[2], strict=True):
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

    def own(rows: slice | None) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
        embeddings, taus = batch()
        columns = pairs(embeddings)
        some = columns if rows is None else part(columns, rows)
        total, parts = objective(some, columns, Taus(*taus), Loss(), similarity)
        return total.detach(), parts, torch.autograd.grad(total, [*embeddings, *taus, weight])

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
    bare = pairs(embeddings)._replace(teacher_image=None, teacher_text=None)
    assert list(objective(bare, bare, Taus(*taus), Loss(alpha=0.0, beta=0.0))[1]) == ["InfoNCE"]
    with pytest.raises(ValueError, match="need both teachers' features"):
        objective(bare, bare, Taus(*taus), Loss())


MEMORY = """
import torch
from pathlib import Path
from stores.parameters import Loss
from train.losses import tiles
from models.temperatures import Taus
from train.losses.objective import Compared, objective

def peak(count):
    tensors = [torch.randn(count, 16) for _ in range(6)]
    pairs = Compared(*(t.requires_grad_() for t in tensors[:4]), *tensors[4:], torch.arange(count))
    taus = Taus(*(torch.tensor(0.3, requires_grad=True) for _ in range(4)))
    objective(pairs, pairs, taus, Loss())[0].backward()
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
