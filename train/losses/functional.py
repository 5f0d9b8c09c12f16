"""The losses of soft-label alignment as pure functions of similarity matrices (CUSA, arXiv 2403.05261, eq. 1–8).

Shapes: M rows, N columns, D embedding. Row i of a similarity is an anchor, column j a candidate; `similarity` between
modalities has images as rows and texts as columns. In one process rows and columns are the same batch, M = N; where
several share a batch, the rows are a process's own pairs and the columns those of all. Every loss is a scalar, the mean
over its rows, in float32, or in float64 when given that; none runs in lower precision, whatever the autocast. A batch
of one gives zero.

Where items are absent, `weights` (M,) are the rows' shares in the mean, zero for one that is no anchor, and `allowed`
(N,) bool the columns that are candidates: the others are masked before the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.scoring import cosine_similarity, unit

__all__ = [
    "cosine_similarity",
    "cross_entropy",
    "csa_loss",
    "hinge_loss",
    "info_nce",
    "mixed_targets",
    "soft_alignment",
    "soft_targets",
    "symmetric_cross_entropy",
    "symmetric_divergence",
    "unit",
    "usa_loss",
]
Mix = Literal["each", "add", "dot"]
Reduction = Literal["mean", "reference"]
Negatives = Literal["hardest", "all"]
Both = tuple[Tensor | None, Tensor | None]
"""Of the direction from rows to columns, and of the other one."""


def info_nce(
    similarity: Tensor,
    tau: Tensor | float,
    groups: Tensor | tuple[Tensor, Tensor] | None = None,
    reduction: Reduction = "mean",
    reverse: Tensor | None = None,
    weights: Both = (None, None),
    allowed: Both = (None, None),
) -> Tensor:
    """InfoNCE over (M, N) `similarity`, averaged over both directions (CUSA, eq. 1–4).

    Args:
        similarity: cosine similarity of images (rows) and texts (columns).
        tau: temperature.
        groups: (N,) integers, or (M,) of the rows and (N,) of the columns; pairs of one group (of the same image) share
            their targets equally, y_ij = [group_i = group_j] / |group_i|, the group counted among the columns. None:
            every pair is its own group, and pair i is on the diagonal.
        reduction: "mean" over anchors (the paper), or "reference", divided by N once more (the authors' code).
        reverse: (M, N) similarity of the rows' texts with the columns' images. None: `similarity`, transposed.
        weights: (M,) of images and of texts, as anchors.
        allowed: (N,) texts and images that are candidates.
    """
    if groups is None:
        groups = torch.arange(len(similarity), device=similarity.device)
    rows, columns = groups if isinstance(groups, tuple) else (groups, groups)
    same = rows[:, None] == columns[None, :]
    targets = [shared_targets(same, similarity, some) for some in dict.fromkeys(allowed)]
    images = cross_entropy(similarity, targets[0], tau, weights[0], allowed[0])
    texts = cross_entropy(similarity.T if reverse is None else reverse, targets[-1], tau, weights[1], allowed[1])
    loss = (images + texts) / 2
    return loss / similarity.shape[1] if reduction == "reference" else loss


def shared_targets(same: Tensor, like: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Return one-hot targets, shared equally where several columns are a row's `same` (M, N) bool: (M, N)."""
    matching = (same if allowed is None else same & allowed).to(_precise(like).dtype)
    return matching / matching.sum(dim=1, keepdim=True).clamp(min=1)


def soft_targets(
    similarity: Tensor, tau: float = 1.0, top_k: int | None = None, allowed: Tensor | None = None
) -> Tensor:
    """Return the soft labels softmax_j(similarity_ij / tau): (M, N), rows sum to one (CUSA, eq. 5).

    With `top_k` each row keeps its k most similar columns, itself included, and those as similar as the k-th: what is
    kept depends on no order. The others get zero.
    """
    logits = _masked(_precise(similarity) / tau, allowed)
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.softmax(logits, dim=1)


def mixed_targets(
    image_similarity: Tensor,
    text_similarity: Tensor,
    tau: float,
    mix: Mix,
    top_k: int | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the soft labels (of images, of texts) from the teachers' (M, N) similarities.

    "each" gives each modality its own teacher's (the paper); "add" gives both the mean of the two similarities, "dot"
    both their geometric mean, negative ones taken as zero (variants in the authors' code).
    """
    if mix == "each":
        return soft_targets(image_similarity, tau, top_k, allowed), soft_targets(text_similarity, tau, top_k, allowed)
    if mix == "add":
        both = (image_similarity + text_similarity) / 2
    else:
        both = (image_similarity.clamp(min=0) * text_similarity.clamp(min=0)).sqrt()
    targets = soft_targets(both, tau, top_k, allowed)
    return targets, targets


def soft_alignment(
    similarity: Tensor,
    targets: Tensor,
    tau: Tensor | float,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return mean_i KL(targets_i ‖ softmax_j(similarity_ij / tau)), summed over j, of (M, N) inputs.

    The targets' rows sum to one and are constants, as in `cross_entropy`.
    """
    return cross_entropy(similarity, targets, tau, weights, allowed) - _mean_entropy(_precise(targets), weights)


def csa_loss(
    similarity: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
    tau: Tensor | float,
    reverse: Tensor | None = None,
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Cross-modal alignment (CUSA, eq. 6): images→texts after the image teacher, texts→images after the text's.

    `reverse` is the (M, N) similarity of texts with images; without it `similarity` is transposed.
    """
    images = soft_alignment(similarity, image_targets, tau, weights, allowed)
    texts = soft_alignment(similarity.T if reverse is None else reverse, text_targets, tau, weights, allowed)
    return (images + texts) / 2


def usa_loss(
    similarities: Sequence[Tensor],
    targets: Sequence[Tensor],
    taus: Sequence[Tensor | float],
    weights: Sequence[Tensor | None] | None = None,
    allowed: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Uni-modal alignment (CUSA, eq. 7, 8): images among images and texts among texts, each after its teacher.

    Every argument has an entry for each modality; the loss is the mean over them.
    """
    masks = [weights or [None] * len(targets), allowed or [None] * len(targets)]
    losses = [soft_alignment(*each) for each in zip(similarities, targets, taus, *masks, strict=True)]
    return torch.stack(losses).sum() / len(losses)


def hinge_loss(
    similarity: Tensor,
    own: Tensor,
    same: Tensor,
    margin: float,
    negatives: Negatives = "hardest",
    weights: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return mean_i of what [margin + similarity_ij − similarity_i,own(i)]₊ over the negatives j amounts to.

    That is the most, of the hardest negative (VSE++, 1707.05612; SGRAF, 2101.01368, eq. 13), or the sum over all.

    Args:
        similarity: (M, N) of anchors and candidates.
        own: (M,) integers, each row's own column.
        same: (M, N) bool, the columns that are no negatives of a row: those of its group, its own one among them.
        margin: by how much the own column should lead.
        negatives: which count.
        weights: (M,).
        allowed: (N,) bool.
    """
    similarity = _precise(similarity)
    excess = (margin + similarity - similarity.gather(1, own[:, None])).clamp(min=0)
    excess = excess.masked_fill(same if allowed is None else same | ~allowed, 0)
    values = excess.amax(dim=1) if negatives == "hardest" else excess.sum(dim=1)
    return _mean(values, weights)


def symmetric_cross_entropy(
    similarity: Tensor,
    tau: Tensor | float = 0.05,
    same: Tensor | None = None,
    reverse: Tensor | None = None,
    floor: float = 1e-7,
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
    """
    if same is None:
        same = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    targets = shared_targets(same, similarity)
    logs = (targets.new_tensor([floor, 1 + floor]).log())[same.long()]
    total = torch.zeros_like(targets[0, 0])
    for scores in (similarity, similarity.T if reverse is None else reverse):
        found = torch.softmax(_precise(scores) / tau, dim=1)
        total = total + cross_entropy(scores, targets, tau) - _mean_dot(found, logs, None)
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
    targets = _precise(targets).clamp(min=1e-10)
    targets = targets if allowed is None else targets.masked_fill(~allowed, 0)
    targets = targets / targets.sum(dim=1, keepdim=True)
    found = torch.log_softmax(_masked(_precise(similarity) / tau, allowed), dim=1)
    if allowed is not None:  # where neither has anything, and −∞ · 0 would be no number
        found, targets = found.masked_fill(~allowed, 0), targets.masked_fill(~allowed, 1)
    return _mean_dot(found.exp() - targets, found - targets.log(), weights)


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
    similarity = _precise(similarity)
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
        logits = _masked((similarity / tau).contiguous(), allowed)
        excess = logits.softmax(dim=1)
        # log Σ exp by way of the largest: log softmax_max = max − log Σ exp.
        normaliser = logits.amax(dim=1) - excess.amax(dim=1).log()
        if allowed is not None:  # where softmax and targets are zero, and −∞ · 0 would be no number
            logits = logits.masked_fill_(~allowed, 0)
        value = _mean(normaliser, weights) - _mean_dot(targets, logits, weights)
        excess.sub_(targets)
        slope = _mean_dot(excess, logits, weights)
        ctx.save_for_backward(excess if weights is None else excess.mul_(weights[:, None]), tau, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        excess, tau, slope = ctx.saved_tensors
        scale = upstream / tau
        return excess * (scale / len(excess)), None, -slope * scale, None, None


def _mean_entropy(targets: Tensor, weights: Tensor | None) -> Tensor:
    # log 0 never meets the target zero: what is left is the limit of p log p.
    return -_mean_dot(targets, targets.clamp(min=torch.finfo(targets.dtype).tiny).log(), weights)


def _mean_dot(a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
    """Return mean_i Σ_j a_ij b_ij."""
    with torch.autocast(a.device.type, enabled=False):
        return _mean(torch.linalg.vecdot(a, b), weights)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of (M,) values, each with its weight."""
    return (values if weights is None else values * weights.to(values.dtype)).mean()


def _masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
