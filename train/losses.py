"""The losses of soft-label alignment as pure functions of similarity matrices (CUSA, arXiv 2403.05261, eq. 1–8).

Shapes: N batch, D embedding. Row i of a similarity is an anchor, column j a candidate; `similarity` between modalities
has images as rows and texts as columns. Every loss is a scalar in float32, or in float64 when given that; none runs in
lower precision, whatever the autocast. A batch of one gives zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Mix = Literal["each", "add", "dot"]
Reduction = Literal["mean", "reference"]


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity of every row of (N, D) `a` with every row of (M, D) `b`: (N, M)."""
    with torch.autocast(a.device.type, enabled=False):
        return functional.normalize(_precise(a), dim=-1) @ functional.normalize(_precise(b), dim=-1).T


def info_nce(
    similarity: Tensor, tau: Tensor | float, groups: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """InfoNCE over (N, N) `similarity`, averaged over both directions (CUSA, eq. 1–4).

    Args:
        similarity: cosine similarity of images (rows) and texts (columns); pair i is on the diagonal.
        tau: temperature.
        groups: (N,) integers; pairs of one group (of the same image) share their targets equally,
            y_ij = [group_i = group_j] / |group_i|. None: every pair is its own group.
        reduction: "mean" over anchors (the paper), or "reference", divided by N once more (the authors' code).
    """
    logits = _precise(similarity) / tau
    count = len(logits)
    if groups is None:
        targets = torch.eye(count, dtype=logits.dtype, device=logits.device)
    else:
        same = (groups[:, None] == groups[None, :]).to(logits.dtype)
        targets = same / same.sum(dim=1, keepdim=True)
    loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
    return loss / count if reduction == "reference" else loss


def soft_targets(similarity: Tensor, tau: float = 1.0) -> Tensor:
    """Return the soft labels softmax_j(similarity_ij / tau): (N, N), rows sum to one (CUSA, eq. 5)."""
    return torch.softmax(_precise(similarity) / tau, dim=1)


def mixed_targets(image_similarity: Tensor, text_similarity: Tensor, tau: float, mix: Mix) -> tuple[Tensor, Tensor]:
    """Return the soft labels (of images, of texts) from the teachers' (N, N) similarities.

    "each" gives each modality its own teacher's (the paper); "add" gives both the mean of the two similarities, "dot"
    both their geometric mean, negative ones taken as zero (variants in the authors' code).
    """
    if mix == "each":
        return soft_targets(image_similarity, tau), soft_targets(text_similarity, tau)
    if mix == "add":
        both = (image_similarity + text_similarity) / 2
    else:
        both = (image_similarity.clamp(min=0) * text_similarity.clamp(min=0)).sqrt()
    targets = soft_targets(both, tau)
    return targets, targets


def soft_alignment(similarity: Tensor, targets: Tensor, tau: Tensor | float) -> Tensor:
    """Return mean_i KL(targets_i ‖ softmax_j(similarity_ij / tau)), summed over j."""
    log_probability = torch.log_softmax(_precise(similarity) / tau, dim=1)
    return functional.kl_div(log_probability, _precise(targets), reduction="batchmean")


def csa_loss(similarity: Tensor, image_targets: Tensor, text_targets: Tensor, tau: Tensor | float) -> Tensor:
    """Cross-modal alignment (CUSA, eq. 6): images→texts after the image teacher, texts→images after the text's."""
    images = soft_alignment(similarity, image_targets, tau)
    texts = soft_alignment(similarity.T, text_targets, tau)
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


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
