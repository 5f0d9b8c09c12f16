"""The trained student by itself, for those who have open_clip and not cusa; and the files without which it is none."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from torch import Tensor, nn

from models.checkpoint import write_tensors
from stores.atomic import atomic_path


@singledispatch
def exported(student: nn.Module, tau: float | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a student's tensors and what its file's header says of them; a family of students may have its own way."""
    return student.state_dict(), {}


@singledispatch
def files_of(student: nn.Module) -> dict[str, bytes]:
    """Return what a student has read besides its weights, by the name of the file that holds it beside them."""
    return {}


def export_student(student: nn.Module, path: Path, tau: float | None) -> None:
    """Write the student's weights to `path` (`student.safetensors`), atomically.

    An open_clip student loads by one line, under the name that it was trained as:

        open_clip.create_model("ViT-B-32", pretrained="artifacts/run/student.safetensors")

    The keys are the open_clip model's own; `logit_scale` is log(1/τ) of the learned temperature `tau`, as zero-shot
    classification expects it; where the training learned none (None), it stays as it was. The header's `open_clip`
    entry, JSON, tells the name and the preprocessing: a file says nothing of the latter to open_clip, which then takes
    CLIP's. The keys of another student are its own.

    What is not in it: cusa's heads (LayerNorm and a linear layer that starts as the identity), which follow the
    towers and learn with them. The file's embeddings are those before the heads; the further the heads have learned
    away from their start, the less the run's figures hold for them.

    Files that the student reads besides its weights are written beside them (`files_of`).
    """
    state, header = exported(student, tau)
    write_tensors(path, state, {"format": "pt", **header})
    for name, data in files_of(student).items():
        with atomic_path(path.with_name(name)) as temporary:
            temporary.write_bytes(data)
