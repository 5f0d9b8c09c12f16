"""What SGR and SAF make of a pair's similarity vectors: graph reasoning, or attention filtration.

The vectors of a block of pairs are its nodes, (N, m, n, k): N images, m captions, n = 1 + L nodes, the global one first
and then one of each word, k numbers.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.sgraf.encoders import EPSILON, at_length_one, linear

MOMENTUM: Final = 0.1


class Statistics(NamedTuple):
    """Of each caption, over all its images and nodes: (m,) each."""

    mean: Tensor
    variance: Tensor
    """Unbiased."""


class Folded(NamedTuple):
    """A step's maps, one of them folded from query and key."""

    asking: Tensor
    """(k, k)"""
    both: Tensor
    """(k, 2k): `asking` beside the map of what is passed on."""
    biases: Tensor
    """(2k,), of both."""


class GraphReasoning(nn.Module):
    """One step of SGR: every node becomes what it attends to among the pair's nodes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.graph_query_w, self.graph_key_w, self.sim_graph_w = linear(dim, dim), linear(dim, dim), linear(dim, dim)

    def folded(self) -> Folded:
        """Return what all pairs share.

        q(E) k(E)ᵀ is (E W_qᵀW_k + b_q W_k) Eᵀ and a number the same for every key, which the softmax cancels: one
        product in place of two, and no gradient for the key's bias.
        """
        query, key = self.graph_query_w, self.graph_key_w
        asking = query.weight.T @ key.weight
        # The bias takes part with a gradient of zero, as optimisers and processes expect of a parameter.
        bias = query.bias @ key.weight + 0 * key.bias
        passing = self.sim_graph_w
        return Folded(asking, torch.cat([asking, passing.weight.T], dim=1), torch.cat([bias, passing.bias]))

    def forward(self, nodes: Tensor, folded: Folded) -> Tensor:
        """Return what becomes of every node of p pairs: (p, n, k) to (p, n, k).

        A node's weights sum to one: the bias of what is passed on may be added before they are applied.
        """
        mapped = torch.addmm(folded.biases, nodes.flatten(0, 1), folded.both)
        queries, passed = mapped.view(*nodes.shape[:2], -1).chunk(2, dim=-1)
        reached = (queries @ nodes.mT).softmax(dim=-1) @ passed
        # In place where nothing is kept for gradients.
        return reached.relu() if reached.requires_grad else reached.relu_()

    def first(self, nodes: Tensor, folded: Folded) -> Tensor:
        """Return what becomes of the first node of each pair alone: (p, n, k) to (p, k)."""
        queries = torch.addmm(folded.biases[: nodes.shape[-1]], nodes[:, 0], folded.asking)
        weights = (nodes @ queries[..., None]).softmax(dim=1)
        return cast(Tensor, self.sim_graph_w((weights.mT @ nodes).squeeze(1))).relu()


class SGR(nn.ModuleList):
    """Similarity graph reasoning: steps, and of the last one the global node, which is all that is read of it."""

    def __init__(self, dim: int, steps: int = 3) -> None:
        super().__init__(GraphReasoning(dim) for _ in range(steps))

    def prepared(self) -> list[Folded]:
        """Return what all blocks of a batch share."""
        return [cast(GraphReasoning, step).folded() for step in self]

    def forward(self, nodes: Tensor, prepared: list[Folded]) -> tuple[Tensor, None]:
        """Return (N, m, k) of the nodes."""
        pairs = nodes.flatten(0, 1)
        *before, last = (cast(GraphReasoning, step) for step in self)
        for step, folded in zip(before, prepared, strict=False):
            pairs = step(pairs, folded)
        return last.first(pairs, prepared[-1]).view(*nodes.shape[:2], -1), None


class SAF(nn.Module):
    """Similarity attention filtration: the nodes' sum, weighted by a gate, at length one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn_sim_w, self.bn = linear(dim, 1), nn.BatchNorm1d(1, momentum=MOMENTUM)

    def prepared(self) -> list[Folded]:
        """Return what all blocks of a batch share: nothing."""
        return []

    def forward(self, nodes: Tensor, prepared: list[Folded]) -> tuple[Tensor, Statistics | None]:
        """Return (N, m, k) of the nodes; in training also the statistics that normalised each caption's gates.

        These are of the images at hand: a caption's images come in one call.
        """
        raw = self.attn_sim_w(nodes).squeeze(-1)
        if self.training:
            variance, mean = torch.var_mean(raw, dim=(0, 2), correction=0, keepdim=True)
            count = raw.shape[0] * raw.shape[2]
            unbiased = variance.detach().flatten() * (count / max(1, count - 1))
            statistics = Statistics(mean.detach().flatten(), unbiased)
        else:
            mean, variance, statistics = *self._running, None
        scaled = (raw - mean) * torch.rsqrt(variance + self.bn.eps)
        gates = torch.sigmoid(scaled * self.bn.weight + self.bn.bias)
        gates = gates / (gates.sum(dim=-1, keepdim=True) + EPSILON)
        return at_length_one((gates[..., None, :] @ nodes).squeeze(-2)), statistics

    @torch.no_grad()
    def note(self, statistics: Statistics) -> None:
        """Take captions' statistics (M,) into the running ones, one caption after another, as the authors do."""
        count = len(statistics.mean)
        later = torch.arange(count - 1, -1, -1, device=statistics.mean.device)
        weights = MOMENTUM * (1 - MOMENTUM) ** later.to(statistics.mean.dtype)
        for running, seen in zip(self._running, statistics, strict=True):
            running.mul_((1 - MOMENTUM) ** count).add_((weights * seen).sum())
        self.bn.get_buffer("num_batches_tracked").add_(count)

    @property
    def _running(self) -> tuple[Tensor, Tensor]:
        return self.bn.get_buffer("running_mean"), self.bn.get_buffer("running_var")
