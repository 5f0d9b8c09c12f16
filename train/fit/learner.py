"""What learns: the model, and the objective with what it learns of its own, such as temperatures."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from models.aligned import AlignedModel
from models.encoded import Encoded
from models.inputs import Tensors
from train.losses.objective import Objective


class Learner(nn.Module):
    """One module for the optimiser, for checkpoints, and for a wrapper that averages gradients over processes."""

    def __init__(self, model: AlignedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Mapping[str, Tensors]) -> dict[str, Encoded]:
        """Encode a batch: n items of each modality."""
        encoded: dict[str, Encoded] = self.model(inputs)
        return encoded
