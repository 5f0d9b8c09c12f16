"""Gradient caching (GradCache, arXiv 2101.06983): the exact gradient of a batch that the student cannot hold at once.

1. Every micro-batch goes through the student without gradient; its random seed is kept, not its activations.
2. The loss of all encoded items together gives the gradient of each.
3. Every micro-batch goes through the student again under the same seed, and its items' gradients go back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.encoded import Encoded, concatenated, map_tensors, tensors_of
from models.inputs import Tensors
from stores import TrainingError

EncodedBatch = dict[str, Encoded]
BatchLoss = Callable[[EncodedBatch], tuple[Tensor, dict[str, Tensor]]]


def cached_backward(
    model: nn.Module,
    inputs: Mapping[str, Tensors],
    micro_batch: int,
    loss: BatchLoss,
    seed: Callable[[int], None],
    accelerator: Accelerator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient of a batch's loss to the model's parameters; return the loss and its parts.

    Args:
        model: inputs to encoded items, by modality; may be wrapped for several processes.
        inputs: n items of each modality.
        micro_batch: how many of them go through the model at once.
        loss: of all n encoded items of each modality.
        seed: sets every generator for the micro-batch of a number, so that dropout falls alike both times.
        accelerator: keeps the processes from exchanging gradients before the last micro-batch.
    """
    runs = _runs(inputs, micro_batch)
    with torch.no_grad():
        whole = encoded_in_parts(model, inputs, micro_batch, seed)
    for tensor in tensors_of(whole):
        tensor.requires_grad_(tensor.is_floating_point())
    total, parts = loss(whole)
    total.backward()  # type: ignore[no-untyped-call]
    direct = _taken_gradients(model)
    for number, run in enumerate(runs):
        last = number + 1 == len(runs)
        seed(number)
        with nullcontext() if last else accelerator.no_sync(model):
            again = model(_cut(inputs, run))
            outputs = [pair for modality in again for pair in _gradients(again[modality], whole[modality], run)]
            # What goes back once goes with the exchange between the processes.
            reached = [pair for pair in outputs + (direct if last else []) if pair[0].requires_grad]
            torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])
    return total.detach(), parts


def encoded_in_parts(
    model: nn.Module, inputs: Mapping[str, Tensors], micro_batch: int, seed: Callable[[int], None] = lambda _: None
) -> EncodedBatch:
    """Return n items of each modality encoded, a micro-batch after another; arguments as in `cached_backward`."""
    encoded = []
    for number, run in enumerate(_runs(inputs, micro_batch)):
        seed(number)
        encoded.append(model(_cut(inputs, run)))
    return {modality: concatenated([part[modality] for part in encoded]) for modality in encoded[0]}


def _runs(inputs: Mapping[str, Tensors], micro_batch: int) -> list[slice]:
    return [slice(start, start + micro_batch) for start in range(0, len(tensors_of(inputs)[0]), micro_batch)]


def _cut(inputs: Mapping[str, Tensors], run: slice) -> Mapping[str, Tensors]:
    return map_tensors(lambda tensor: tensor[run], inputs)


def _gradients(part: Encoded, whole: Encoded, run: slice) -> list[tuple[Tensor, Any]]:
    """Pair what a micro-batch was encoded to with its gradients."""
    pairs = []
    for tensor, leaf in zip(part, whole, strict=True):
        # The whole may have a mask where this part needs none.
        if tensor is not None and leaf is not None and leaf.grad is not None:
            gradient = leaf.grad[run]
            # Parts of the whole are padded to its longest.
            pairs.append((tensor, gradient[:, : tensor.shape[1]] if tensor.ndim > 1 else gradient))
    return pairs


def _taken_gradients(model: nn.Module) -> list[tuple[Tensor, Any]]:
    """Take away, for later, the gradients that the loss itself gave to parameters: of scorers and temperatures."""
    reached = [parameter for parameter in model.parameters() if parameter.grad is not None]
    taken = [(parameter.view_as(parameter), parameter.grad) for parameter in reached]
    for parameter in reached:
        parameter.grad = None
    return taken


def check_cacheable(model: nn.Module, micro_batch: int | None, share: int) -> None:
    """Refuse to split a process's share of a batch where one item's encoding depends on what else goes through.

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
