"""Gradient caching (GradCache, arXiv 2101.06983): the exact gradient of a batch that the student cannot hold at once.

1. Every micro-batch goes through the student without gradient; its random seed is kept, not its activations.
2. The loss of all embeddings together gives each embedding's gradient.
3. Every micro-batch goes through the student again under the same seed, and its embeddings' gradients go back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.aligned import Embeddings
from models.temperatures import Taus
from stores import TrainingError

Objective = Callable[[Embeddings, Taus], tuple[Tensor, dict[str, Tensor]]]


def cached_backward(
    model: nn.Module,
    images: Tensor,
    tokens: Tensor,
    micro_batch: int,
    objective: Objective,
    seed: Callable[[int], None],
    accelerator: Accelerator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient of a batch's loss to the model's parameters; return the loss and its parts.

    Args:
        model: images and tokens to (Embeddings, Taus); may be wrapped for several processes.
        images: (N, 3, S, S).
        tokens: (N, length).
        micro_batch: how many pairs go through the model at once.
        objective: the loss of all N embeddings.
        seed: sets every generator for the micro-batch of a number, so that dropout falls alike both times.
        accelerator: keeps the processes from exchanging gradients before the last micro-batch.
    """
    parts = list(zip(torch.split(images, micro_batch), torch.split(tokens, micro_batch), strict=True))
    embedded = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed(number)
            embeddings, taus = model(*part)
            embedded.append(embeddings)
    whole = Embeddings(*(torch.cat(pieces).requires_grad_() for pieces in zip(*embedded, strict=True)))
    leaves = Taus(*(tau.detach().clone().requires_grad_() for tau in taus))
    total, losses = objective(whole, leaves)
    total.backward()  # type: ignore[no-untyped-call]
    direct = _taken_gradients(model)
    gradients = [[None] * len(parts) if e.grad is None else torch.split(e.grad, micro_batch) for e in whole]
    for number, part in enumerate(parts):
        last = number + 1 == len(parts)
        seed(number)
        with nullcontext() if last else accelerator.no_sync(model):
            embeddings, taus = model(*part)
            outputs = list(zip(embeddings, (g[number] for g in gradients), strict=True))
            if last:  # what goes back once goes with the exchange between the processes
                outputs += [*zip(taus, (leaf.grad for leaf in leaves), strict=True), *direct]
            _backward(outputs)
    return total.detach(), losses


def _taken_gradients(model: nn.Module) -> list[tuple[Tensor, Any]]:
    """Take away, for later, the gradients that parameters have already (those of a student's own similarity)."""
    reached = [parameter for parameter in model.parameters() if parameter.grad is not None]
    taken = [(parameter.view_as(parameter), parameter.grad) for parameter in reached]
    for parameter in reached:
        parameter.grad = None
    return taken


def _backward(outputs: list[tuple[Tensor, Any]]) -> None:
    reached = [(tensor, gradient) for tensor, gradient in outputs if gradient is not None and tensor.requires_grad]
    torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])


def check_cacheable(model: nn.Module, micro_batch: int | None, share: int) -> None:
    """Refuse to split a process's share of a batch where one pair's embedding depends on what else goes through.

    Raises:
        TrainingError: the model has batch normalisation, outside of frozen towers.
    """
    if micro_batch is None or micro_batch >= share:
        return
    for name, module in model.named_modules():
        # Frozen towers stay in evaluation mode, whatever the model is in.
        if isinstance(module, _BatchNorm) and module.training:
            raise TrainingError(
                f"train.micro_batch is {micro_batch}, but the student normalises over the batch ({name}): in parts it "
                f"would give other embeddings. Leave train.micro_batch null, freeze that tower, or take a student "
                f"without batch normalisation."
            )
