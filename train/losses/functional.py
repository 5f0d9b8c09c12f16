"""The losses of soft-label alignment as pure functions of similarity matrices (CUSA, arXiv 2403.05261, eq. 1–8).

Shapes: M rows, N columns, D embedding. Row i of a similarity is an anchor, column j a candidate; `similarity` between
modalities has images as rows and texts as columns. In one process rows and columns are the same batch, M = N; where
several share a batch, the rows are a process's own pairs and the columns those of all. Every loss is a scalar, the mean
over its rows, in float32, or in float64 when given that; none runs in lower precision, whatever the autocast. A batch
of one gives zero.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Mix = Literal["each", "add", "dot"]
Reduction = Literal["mean", "reference"]


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity of every row of (N, D) `a` with every row of (M, D) `b`: (N, M)."""
    with torch.autocast(a.device.type, enabled=False):
        return unit(a) @ unit(b).T


def unit(embeddings: Tensor) -> Tensor:
    """Return (N, D) `embeddings` at length one, in float32 or float64: their products are cosines."""
    return functional.normalize(_precise(embeddings), dim=-1)


def info_nce(
    similarity: Tensor,
    tau: Tensor | float,
    groups: Tensor | tuple[Tensor, Tensor] | None = None,
    reduction: Reduction = "mean",
    reverse: Tensor | None = None,
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
    """
    if groups is None:
        groups = torch.arange(len(similarity), device=similarity.device)
    rows, columns = groups if isinstance(groups, tuple) else (groups, groups)
    same = (rows[:, None] == columns[None, :]).to(_precise(similarity).dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    images = cross_entropy(similarity, targets, tau)
    texts = cross_entropy(similarity.T if reverse is None else reverse, targets, tau)
    loss = (images + texts) / 2
    return loss / similarity.shape[1] if reduction == "reference" else loss


def soft_targets(similarity: Tensor, tau: float = 1.0, top_k: int | None = None) -> Tensor:
    """Return the soft labels softmax_j(similarity_ij / tau): (M, N), rows sum to one (CUSA, eq. 5).

    With `top_k` each row keeps its k most similar columns, itself included, and those as similar as the k-th: what is
    kept depends on no order. The others get zero.
    """
    logits = _precise(similarity) / tau
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.softmax(logits, dim=1)


def mixed_targets(
    image_similarity: Tensor, text_similarity: Tensor, tau: float, mix: Mix, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the soft labels (of images, of texts) from the teachers' (M, N) similarities.

    "each" gives each modality its own teacher's (the paper); "add" gives both the mean of the two similarities, "dot"
    both their geometric mean, negative ones taken as zero (variants in the authors' code).
    """
    if mix == "each":
        return soft_targets(image_similarity, tau, top_k), soft_targets(text_similarity, tau, top_k)
    if mix == "add":
        both = (image_similarity + text_similarity) / 2
    else:
        both = (image_similarity.clamp(min=0) * text_similarity.clamp(min=0)).sqrt()
    targets = soft_targets(both, tau, top_k)
    return targets, targets


def soft_alignment(similarity: Tensor, targets: Tensor, tau: Tensor | float) -> Tensor:
    """Return mean_i KL(targets_i ‖ softmax_j(similarity_ij / tau)), summed over j, of (M, N) inputs.

    The targets' rows sum to one and are constants, as in `cross_entropy`.
    """
    return cross_entropy(similarity, targets, tau) - _mean_entropy(_precise(targets))


def csa_loss(
    similarity: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
    tau: Tensor | float,
    reverse: Tensor | None = None,
) -> Tensor:
    """Cross-modal alignment (CUSA, eq. 6): images→texts after the image teacher, texts→images after the text's.

    `reverse` is the (M, N) similarity of texts with images; without it `similarity` is transposed.
    """
    images = soft_alignment(similarity, image_targets, tau)
    texts = soft_alignment(similarity.T if reverse is None else reverse, text_targets, tau)
    return (images + texts) / 2


def usa_loss(
    image_similarity: Tensor,
    text_similarity: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
    tau_image: Tensor | float,
    tau_text: Tensor | float,
) -> Tensor:
    """Uni-modal alignment (CUSA, eq. 7, 8): images among images and texts among texts, each after its teacher."""
    images = soft_alignment(image_similarity, image_targets, tau_image)
    texts = soft_alignment(text_similarity, text_targets, tau_text)
    return (images + texts) / 2


def cross_entropy(similarity: Tensor, targets: Tensor, tau: Tensor | float) -> Tensor:
    """Return mean_i −Σ_j targets_ij log softmax_j(similarity_ij / tau) of (M, N) inputs.

    The targets' rows sum to one; they are constants, through which no gradient flows.
    """
    similarity = _precise(similarity)
    tau = torch.as_tensor(tau, dtype=similarity.dtype, device=similarity.device)
    value: Tensor = _CrossEntropy.apply(similarity, targets.to(similarity.dtype), tau)  # type: ignore[no-untyped-call]
    return value


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that keeps one matrix for the backward pass, its gradient: less memory and fewer passes over it.

    The gradient with respect to the logits is softmax − targets, and that to tau follows from its product with them.
    """

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, targets: Tensor, tau: Tensor) -> Tensor:
        logits = (similarity / tau).contiguous()
        excess = logits.softmax(dim=1)
        # log Σ exp by way of the largest: log softmax_max = max − log Σ exp.
        normaliser = logits.amax(dim=1) - excess.amax(dim=1).log()
        value = normaliser.mean() - _mean_dot(targets, logits)
        excess.sub_(targets)
        ctx.save_for_backward(excess, tau, _mean_dot(excess, logits))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, Tensor]:
        excess, tau, slope = ctx.saved_tensors
        scale = upstream / tau
        return excess * (scale / len(excess)), None, -slope * scale


def _mean_entropy(targets: Tensor) -> Tensor:
    # log 0 never meets the target zero: what is left is the limit of p log p.
    return -_mean_dot(targets, targets.clamp(min=torch.finfo(targets.dtype).tiny).log())


def _mean_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return mean_i Σ_j a_ij b_ij."""
    with torch.autocast(a.device.type, enabled=False):
        dots: Tensor = torch.linalg.vecdot(a, b)
        return dots.mean()


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
