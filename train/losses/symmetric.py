"""Losses of both directions of an entropy or divergence, which bear targets that may be wrong (L2RM, 2403.05105).

Shapes and `weights` and `allowed` are those of `train.losses.cross_entropy`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.losses.cross_entropy import cross_entropy, masked, mean_dot, precise


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
) -> Tensor:
    """Return mean_i [KL(targets_i ‖ Q_i) + KL(Q_i ‖ targets_i)] of (M, N) inputs, Q = softmax_j(similarity_ij / tau).

    Targets below 1e-10 count as that (L2RM); they are constants.
    """
    targets = precise(targets).clamp(min=1e-10)
    targets = targets if allowed is None else targets.masked_fill(~allowed, 0)
    targets = targets / targets.sum(dim=1, keepdim=True)
    found = torch.log_softmax(masked(precise(similarity) / tau, allowed), dim=1)
    if allowed is not None:  # where neither has anything, and −∞ · 0 would be no number
        found, targets = found.masked_fill(~allowed, 0), targets.masked_fill(~allowed, 1)
    return mean_dot(found.exp() - targets, found - targets.log(), weights)
