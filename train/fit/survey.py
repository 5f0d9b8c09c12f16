"""A look at all pairs of an epoch before it begins, for terms that judge them: the model as it is, without gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from train.fit.processes import Processes
from train.losses.comparison import Comparison, Instances
from train.losses.terms import Term

Block = tuple[Instances, Comparison]


def survey(terms: Sequence[Term], epoch: int, blocks: Iterator[Block], processes: Processes) -> None:
    """Give every term its losses of all pairs, those of all processes, by their captions' numbers.

    Args:
        terms: what wants them.
        epoch: which is to begin.
        blocks: this process's rows of each batch of the epoch, compared with all of its columns.
        processes: who share the batches.
    """
    captions: list[Tensor] = []
    losses: list[list[Tensor]] = [[] for _ in terms]
    for rows, compared in blocks:
        captions.append(processes.gather(rows.numbers["caption"]))
        for term, found in zip(terms, losses, strict=True):
            found.append(processes.gather(term.pair_losses(compared)))
    for term, found in zip(terms, losses, strict=True):
        term.take_survey(epoch, torch.cat(captions), torch.cat(found))
