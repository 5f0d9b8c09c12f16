"""Gradient caching with dropout: the gradient of the whole batch, with the masks that each micro-batch drew."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tiny_students import Dropping
from torch import Tensor

from models.aligned import AlignedModel
from models.encoded import Encoded, concatenated, map_tensors
from models.inputs import Padded
from stores.parameters import Loss
from train.fit.grad_cache import cached_backward
from train.fit.optimisation import Learner
from train.losses.comparison import Instances
from train.losses.objective import compare, make_objective

PAIRS, MICRO = 11, 4


def test_dropout_falls_alike_in_both_passes() -> None:
    set_seed(0)
    learner = Learner(AlignedModel(Dropping()), make_objective(Loss())).double().train()
    tokens = torch.randint(256, (PAIRS, 60))
    inputs = {"image": torch.rand(PAIRS, 192).double(), "text": Padded(tokens, tokens >= 0)}
    teachers = {"image": torch.randn(PAIRS, 12).double(), "text": torch.randn(PAIRS, 9).double()}

    def loss(encoded: dict[str, Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Instances(encoded, torch.arange(PAIRS), torch.arange(PAIRS), teachers)
        return compare(learner.objective, rows, rows, learner.model.scorer)

    def seed(number: int) -> None:
        set_seed(100 + number)

    encoded = []
    for number, start in enumerate(range(0, PAIRS, MICRO)):
        seed(number)
        part = slice(start, start + MICRO)
        encoded.append(learner(map_tensors(lambda tensor, part=part: tensor[part], inputs)))
    whole = {modality: concatenated([part[modality] for part in encoded]) for modality in inputs}
    expected, _ = loss(whole)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in learner.named_parameters()}
    learner.zero_grad(set_to_none=True)

    total, parts = cached_backward(learner, inputs, MICRO, loss, seed, Accelerator(cpu=True))
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    assert list(parts) == ["InfoNCE", "CSA", "USA"]
    for name, parameter in learner.named_parameters():
        largest = gradients[name].abs().max()
        assert largest > 0, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-10 * float(largest), msg=name)
    first, other = (learner({"image": inputs["image"][:MICRO]}) for number in (0, 1) if not seed(number))
    assert not torch.equal(first["image"].vector, other["image"].vector), "dropout must draw something"
