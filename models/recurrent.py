"""Recurrent layers under autocast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def states_of(recurrent: nn.GRU, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
    """Return all states of n packed sequences, and the last ones, in the precision of the weights.

    Under autocast to bf16 cuDNN would compute them in float16, for whose range nothing scales the gradients.
    """
    with torch.autocast(packed.data.device.type, enabled=False):
        found: tuple[PackedSequence, Tensor] = recurrent(packed.to(next(recurrent.parameters()).dtype))
        return found
