"""Cross-entropy of (M, N) logits with given targets, keeping one matrix for the backward pass; and both ways.

The symmetric losses bear targets that may be wrong (L2RM, 2403.05105).

Where items are absent, `weights` (M,) are the rows' shares in the mean, zero for one that is no anchor, and `allowed`
(N,) bool the columns that are candidates: the others are masked before the softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(
    similarity: Tensor,
    targets: Tensor,
    tau: Tensor | float,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return mean_i −Σ_j targets_ij log softmax_j(similarity_ij / tau) of (M, N) inputs.

    The targets' rows sum to one; they are constants, through which no gradient flows.
    """
    similarity = precise(similarity)
    tau = torch.as_tensor(tau, dtype=similarity.dtype, device=similarity.device)
    if weights is not None:
        weights = weights.to(similarity.dtype)
    value: Tensor = _CrossEntropy.apply(similarity, targets.to(similarity.dtype), tau, weights, allowed)  # type: ignore[no-untyped-call]
    return value


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that keeps one matrix for the backward pass, its gradient: less memory and fewer passes over it.

    The gradient with respect to the logits is softmax − targets, and that to tau follows from its product with them.
    """

    @staticmethod
    def forward(
        ctx: Any, similarity: Tensor, targets: Tensor, tau: Tensor, weights: Tensor | None, allowed: Tensor | None
    ) -> Tensor:
        logits = masked((similarity / tau).contiguous(), allowed)
        excess = logits.softmax(dim=1)
        # log Σ exp by way of the largest: log softmax_max = max − log Σ exp.
        normaliser = logits.amax(dim=1) - excess.amax(dim=1).log()
        if allowed is not None:  # where softmax and targets are zero, and −∞ · 0 would be no number
            logits = logits.masked_fill_(~allowed, 0)
        value = row_mean(normaliser, weights) - mean_dot(targets, logits, weights)
        excess.sub_(targets)
        slope = mean_dot(excess, logits, weights)
        ctx.save_for_backward(excess if weights is None else excess.mul_(weights[:, None]), tau, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        excess, tau, slope = ctx.saved_tensors
        scale = upstream / tau
        return excess * (scale / len(excess)), None, -slope * scale, None, None


def mean_entropy(targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return mean_i −Σ_j targets_ij log targets_ij."""
    # log 0 never meets the target zero: what is left is the limit of p log p.
    return -mean_dot(targets, targets.clamp(min=torch.finfo(targets.dtype).tiny).log(), weights)


def mean_dot(a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
    """Return mean_i Σ_j a_ij b_ij."""
    with torch.autocast(a.device.type, enabled=False):
        return row_mean(torch.linalg.vecdot(a, b), weights)


def row_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of (M,) values, each with its weight."""
    return (values if weights is None else values * weights.to(values.dtype)).mean()


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Return (M, N) logits without the columns that are no candidates."""
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 where it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def symmetric_cross_entropy(
    similarity: Tensor,
    tau: Tensor | float = 0.05,
    same: Tensor | None = None,
    reverse: Tensor | None = None,
    floor: float = 1e-7,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return ½ Σ over both directions of mean_i [−Σ_j Y_ij log Q_ij − Σ_j Q_ij log Y_ij], Q the softmax at `tau`.

    The second part is at most −log floor, however wrong the pair: that is what bears wrong pairs (L2RM's warm-up; after
    1908.06112). In it Y is the identity plus `floor`.

    Args:
        similarity: (M, N) of images and texts.
        tau: temperature.
        same: (M, N) bool, the columns that belong to a row: they share the first part's target, and each counts as the
            row's own in the second. None: the diagonal.
        reverse: (M, N) similarity of the rows' texts with the columns' images. None: `similarity`, transposed.
        floor: what Y has beside the identity.
        weights: (M,).
        allowed: (N,) bool.
    """
    if same is None:
        same = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    same = same if allowed is None else same & allowed
    matching = same.to(precise(similarity).dtype)
    targets = matching / matching.sum(dim=1, keepdim=True).clamp(min=1)
    logs = (targets.new_tensor([floor, 1 + floor]).log())[same.long()]
    total = torch.zeros_like(targets[0, 0])
    for scores in (similarity, similarity.T if reverse is None else reverse):
        found = torch.softmax(masked(precise(scores) / tau, allowed), dim=1)
        total = total + cross_entropy(scores, targets, tau, weights, allowed) - mean_dot(found, logs, weights)
    return total / 2


def symmetric_divergence(
    similarity: Tensor,
    targets: Tensor,
    tau: Tensor | float,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
    floor: Tensor | float = 1e-10,
) -> Tensor:
    """Return mean_i [KL(targets_i ‖ Q_i) + KL(Q_i ‖ targets_i)] of (M, N) inputs, Q = softmax_j(similarity_ij / tau).

    Targets below `floor`, a number or (M, 1), count as that; they are constants.
    """
    targets = precise(targets)
    targets = torch.maximum(targets, torch.as_tensor(floor, dtype=targets.dtype, device=targets.device))
    targets = targets if allowed is None else targets.masked_fill(~allowed, 0)
    targets = targets / targets.sum(dim=1, keepdim=True)
    found = torch.log_softmax(masked(precise(similarity) / tau, allowed), dim=1)
    if allowed is not None:  # where neither has anything, and −∞ · 0 would be no number
        found, targets = found.masked_fill(~allowed, 0), targets.masked_fill(~allowed, 1)
    return mean_dot(found.exp() - targets, found - targets.log(), weights)
