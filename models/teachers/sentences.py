"""Text teachers through sentence-transformers: any model of its hub or a folder, and the packaged ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.encoded import moved
from models.loading import shortened, weights_digest
from models.sentence_models import sentence_model
from models.teachers.teacher import TextTeacher
from models.teachers.text_identity import module_identity, tokenizer_identity
from models.teachers.tokens import bulk_tokens
from stores.errors import TeacherError
from stores.hardware import ComputePrecision


class SentenceTeacher(TextTeacher):
    """A sentence-transformers model, by its name (see `sentence_model`).

    A model whose batches are not padded tokens (static embeddings, a bag of words …) takes its texts as they are.
    """

    def __init__(self, spec: str, name: str, device: torch.device, precision: ComputePrecision) -> None:
        self._model = sentence_model(name, device)
        dim = self._model.get_embedding_dimension()
        if dim is None:
            raise TeacherError(path=name, expected="a sentence-transformers model that says its embedding size")
        # What SentenceTransformer.encode prepends when no other prompt is asked for.
        self._prompt: str | None = self._model.prompts.get(self._model.default_prompt_name or "")
        try:
            self._tokens = bulk_tokens(self._model, self._prompt)
            tokenizer = tokenizer_identity(self._model.tokenizer, self._numbers)
        except Exception as error:  # whatever a foreign tokenizer or module raises
            raise TeacherError(f"{spec} cannot prepare two texts as a batch: {shortened(error)}") from None
        modules = [module_identity(module) for module in self._model]
        identity = [weights_digest(self._model), modules, tokenizer, self._model.max_seq_length, self._prompt, dim]
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)

    def prepare(self, items: list[str]) -> list[Any]:
        """Return each text's tokens: (N, L) int32, see `tokens`."""
        return self._tokens.prepare(items) if self._tokens else items

    def length(self, prepared: Any) -> int:
        """Return the number of tokens, or of characters where the model takes texts as they are."""
        return len(prepared) if isinstance(prepared, str) else super().length(prepared)

    def collate(self, items: list[Any]) -> Any:
        """Return the model's features, padded to the longest of the batch."""
        return self._tokens.collate(items) if self._tokens else items

    def _numbers(self, text: str) -> Any:
        """Return the numbers of one text's tokens, or whatever tensors the model reads in their place."""
        made = self._model.preprocess([text], prompt=self._prompt)
        read = [made["input_ids"]] if "input_ids" in made else [made[name] for name in sorted(made)]
        return [value.tolist() for value in read if isinstance(value, Tensor)]

    def forward(self, batch: Any) -> Tensor:
        inputs = batch if self._tokens else self._model.preprocess(batch, prompt=self._prompt)
        features: Tensor = self._model(moved(inputs, self.device))["sentence_embedding"]
        return features[:, : self.dim]  # a model may say that only its first dimensions are to be kept
