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

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from models.scoring import cosine_similarity, unit
from train.losses.both_ways import both_ways
from train.losses.cross_entropy import (
    cross_entropy,
    masked,
    mean_entropy,
    precise,
    row_mean,
    symmetric_cross_entropy,
    symmetric_divergence,
)
from train.losses.presence import Cells, anchor_shares, candidates, count_cells, present_cells, weighted_mean
from train.losses.sets import global_discriminative, intra_set_divergence, mmd, set_diversity

__all__ = [
    "cosine_similarity",
    "cross_entropy",
    "csa_loss",
    "global_discriminative",
    "hinge",
    "hinge_loss",
    "info_nce",
    "intra_set_divergence",
    "mixed_targets",
    "mmd",
    "pcmc",
    "pcmr",
    "regression",
    "set_diversity",
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
Far = Literal["zero", "below"]
Tau = Tensor | float
Pair = tuple[str, str]
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
    if reverse is None and similarity.shape[0] == similarity.shape[1]:
        loss = both_ways(similarity, (rows, columns), tau, weights, allowed)
        return loss / len(similarity) if reduction == "reference" else loss
    same = rows[:, None] == columns[None, :]
    targets = [shared_targets(same, similarity, some) for some in dict.fromkeys(allowed)]
    images = cross_entropy(similarity, targets[0], tau, weights[0], allowed[0])
    texts = cross_entropy(similarity.T if reverse is None else reverse, targets[-1], tau, weights[1], allowed[1])
    loss = (images + texts) / 2
    return loss / similarity.shape[1] if reduction == "reference" else loss


def shared_targets(same: Tensor, like: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Return one-hot targets, shared equally where several columns are a row's `same` (M, N) bool: (M, N)."""
    matching = (same if allowed is None else same & allowed).to(precise(like).dtype)
    return matching / matching.sum(dim=1, keepdim=True).clamp(min=1)


def soft_targets(
    similarity: Tensor, tau: float = 1.0, top_k: int | None = None, allowed: Tensor | None = None
) -> Tensor:
    """Return the soft labels softmax_j(similarity_ij / tau): (M, N), rows sum to one (CUSA, eq. 5).

    With `top_k` each row keeps its k most similar columns, itself included, and those as similar as the k-th: what is
    kept depends on no order. The others get zero.
    """
    logits = masked(precise(similarity) / tau, allowed)
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
    return cross_entropy(similarity, targets, tau, weights, allowed) - mean_entropy(precise(targets), weights)


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
    similarity = precise(similarity)
    excess = (margin + similarity - similarity.gather(1, own[:, None])).clamp(min=0)
    excess = excess.masked_fill(same if allowed is None else same | ~allowed, 0)
    # Of equal ones the gradient is that of one alone, as the authors have it; amax would share it among them.
    values = excess.max(dim=1).values if negatives == "hardest" else excess.sum(dim=1)
    return row_mean(values, weights)


def hinge(
    similarity: Tensor,
    margin: float,
    hardest: bool = True,
    reduction: Literal["sum", "mean"] = "sum",
    groups: Tensor | None = None,
) -> Tensor:
    """Return the hinge of a whole batch, both ways (VSE++, 1707.05612; SGRAF, 2101.01368): a scalar.

    Args:
        similarity: (N, N), of N images with their N texts in the same order.
        margin: by which a pair's own score is to lead.
        hardest: only the worst negative of each row and column counts, else all of them.
        reduction: summed over the batch, as the authors do, or its mean.
        groups: (N,), pairs of one group are no negatives of each other; None: each is a group of its own.
    """
    places = torch.arange(len(similarity), device=similarity.device)
    groups = places if groups is None else groups
    same = groups[:, None] == groups
    negatives: Negatives = "hardest" if hardest else "all"
    ways = [hinge_loss(scores, places, same, margin, negatives) for scores in (similarity, similarity.T)]
    return (ways[0] + ways[1]) * (len(similarity) if reduction == "sum" else 1)


def regression(
    similarity: Tensor, same: Tensor, present: Tensor | None, cells: Cells, gamma: float, far: Far = "zero"
) -> Tensor:
    """Return the rows' share of γ · mean_{P⁺} (1 − S)² + (1 − γ) · mean_{P⁻} φ(S) (PCMR, C4).

    P⁺ and P⁻ are the present cells of the whole batch that match and that do not; the mean over equal shares of the
    rows is the whole batch's value.

    Args:
        similarity: (M, N).
        same: (M, N) bool, which cells match.
        present: (M, N) bool, which cells there are; None: all.
        cells: how many there are in the whole batch.
        gamma: γ, the weight of the matching ones.
        far: φ of the others: "zero", s², or "below", [s]₊²: only too similar is wrong.
    """
    similarity = precise(similarity)
    others = ~same if present is None else ~same & present
    matching = same if present is None else same & present
    near = (1 - similarity).square().masked_fill(~matching, 0).sum() / cells.matching.clamp(min=1)
    away = similarity if far == "zero" else similarity.clamp(min=0)
    away = away.square().masked_fill(~others, 0).sum() / cells.others.clamp(min=1)
    share = similarity.shape[1] / similarity.shape[0]
    return (share * (gamma * near + (1 - gamma) * away)).to(similarity.dtype)


def pcmc(
    embeddings: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    groups: Tensor | Mapping[Pair, Tensor],
    tau: Tau | Mapping[Pair, Tau],
    weights: Mapping[Pair, float] | None = None,
) -> Tensor:
    """Pairwise cross-modal contrastive loss over any number of modalities (PCMC, arXiv 2401.16347; C1 to C3).

    Every two modalities give InfoNCE both ways over the items that are there; those without a matching and a
    non-matching cell in the batch are left out of the mean. Where nothing is left the loss is zero.

    Args:
        embeddings: (N, D) by modality; brought to length one here. The modalities are paired in their order.
        present: (N,) bool by modality; of modalities that are not named, all rows are there.
        groups: (N,) integers, items of one group match; or by pair of modalities, where pairs match otherwise.
        tau: temperature, of all or of each pair.
        weights: of each pair; those that are not named weigh 1.
    """
    units = {name: unit(vectors) for name, vectors in embeddings.items()}
    losses, counted, heights = [], [], []
    for first, second in combinations(units, 2):
        ids = groups[first, second] if isinstance(groups, Mapping) else groups
        here, there = present.get(first), present.get(second)
        shares = anchor_shares((ids, ids), (here, here), there), anchor_shares((ids, ids), (there, there), here)
        temperature = tau[first, second] if isinstance(tau, Mapping) else tau
        allowed = candidates(there), candidates(here)
        similarity = units[first] @ units[second].T
        losses.append(info_nce(similarity, temperature, ids, weights=shares, allowed=allowed))
        counted.append(count_cells(ids, ids, here, there).countable)
        heights.append((weights or {}).get((first, second), 1.0))
    return weighted_mean(losses, counted, heights)


def pcmr(
    embeddings: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    groups: Tensor | Mapping[Pair, Tensor],
    gamma: float = 0.5,
    weights: Mapping[Pair, float] | None = None,
    far: Far = "zero",
) -> Tensor:
    """Pairwise cross-modal regression (PCMR, arXiv 2401.16347; C4, C5): matching cells towards 1, others towards 0.

    The arguments are those of `pcmc` and `regression`.
    """
    units = {name: unit(vectors) for name, vectors in embeddings.items()}
    losses, counted, heights = [], [], []
    for first, second in combinations(units, 2):
        ids = groups[first, second] if isinstance(groups, Mapping) else groups
        cells = count_cells(ids, ids, present.get(first), present.get(second))
        both = present_cells(present.get(first), present.get(second))
        similarity = units[first] @ units[second].T
        losses.append(regression(similarity, ids[:, None] == ids[None, :], both, cells, gamma, far))
        counted.append(cells.countable)
        heights.append((weights or {}).get((first, second), 1.0))
    return weighted_mean(losses, counted, heights)
