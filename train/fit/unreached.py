"""What no term of the loss reaches does not learn: nothing decays it, and no process waits for its gradient."""

from __future__ import annotations

from models.aligned import AlignedModel
from models.students import parameters_of
from train.losses.objective import Objective


def freeze_unreached(model: AlignedModel, objective: Objective) -> str:
    """Freeze what a student needs to match alone, unless a term matches, and the uni-modal heads that no term teaches.

    Return what a person may not expect of it; "" where there is nothing.
    """
    parts = [] if objective.matches else getattr(model.student, "matching_parts", [])
    matching = [parameter for parameter in parameters_of(parts) if parameter.requires_grad]
    heads = [head for modality, head in model.uni_heads.items() if not objective.teaches(modality)]
    for parameter in (*matching, *parameters_of(heads)):
        parameter.requires_grad_(False)
    if not matching:
        return ""
    count = sum(parameter.numel() for parameter in matching)
    return f"The {count:,} weights that the student matches by do not learn: the loss matches with loss.recipe=x2vlm."
