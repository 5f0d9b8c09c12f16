"""Gradient caching with dropout: the gradient of the whole batch, with the masks that each micro-batch drew."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tiny_students import Dropping
from torch import Tensor

from models.aligned import AlignedModel, Embeddings
from models.temperatures import Taus
from stores.parameters import Loss
from train.fit.grad_cache import cached_backward
from train.losses.objective import Compared, objective

PAIRS, MICRO = 11, 4


def test_dropout_falls_alike_in_both_passes() -> None:
    set_seed(0)
    model = AlignedModel(Dropping()).train()
    images, tokens = torch.rand(PAIRS, 192), torch.randint(256, (PAIRS, 60))
    teachers = torch.randn(PAIRS, 12), torch.randn(PAIRS, 9)

    def loss(embeddings: Embeddings, taus: Taus) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = Compared(*embeddings, *teachers, torch.arange(PAIRS))
        return objective(pairs, pairs, taus, Loss())

    def seed(number: int) -> None:
        set_seed(100 + number)

    embedded = []
    for number, part in enumerate(zip(images.split(MICRO), tokens.split(MICRO), strict=True)):
        seed(number)
        embeddings, taus = model(*part)
        embedded.append(embeddings)
    whole = Embeddings(*(torch.cat(parts) for parts in zip(*embedded, strict=True)))
    expected, _ = loss(whole, taus)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    total, parts = cached_backward(model, images, tokens, MICRO, loss, seed, Accelerator(cpu=True))
    torch.testing.assert_close(total, expected)
    assert list(parts) == ["InfoNCE", "CSA", "USA"]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7, msg=name)
    seed(0)
    first, _ = model(images[:MICRO], tokens[:MICRO])
    seed(1)
    other, _ = model(images[:MICRO], tokens[:MICRO])
    assert not torch.equal(first.image, other.image), "dropout must draw something for this test to mean anything"
