"""Matching: how likely an image and a text belong together, by a student that looks at both at once.

Such a student reranks what a first stage finds. Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.encoded import Encoded, map_tensors
from models.scoring import Cosine, Scorer
from models.students import as_student
from stores.errors import StudentError


class Matcher(Protocol):
    """What reranks; a student may be one by itself."""

    def match(self, images: Any, texts: Encoded) -> Tensor:
        """Return the logits of no match and of match: (P, 2).

        `images` are what `prepare_match` made of P images, or of one, which all P texts are matched with.
        """

    def prepare_match(self, images: Encoded) -> Any:
        """Return what depends on n images alone: tensors of n rows, in tuples and lists as deep as it likes."""


class ScorerAsMatcher(nn.Module):
    """A scorer of pairs as a matcher: the logits (0, score)."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        scores = self._scorer.pairs(_repeated(images, texts.size), texts)
        return torch.stack([torch.zeros_like(scores), scores], dim=1)

    def prepare_match(self, images: Encoded) -> Encoded:
        return images


class _Unprepared(nn.Module):
    """A student with `match` alone."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self._student = student

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        logits: Tensor = self._student.match(_repeated(images, texts.size), texts)
        return logits

    def prepare_match(self, images: Encoded) -> Encoded:
        return images


def _repeated(images: Encoded, count: int) -> Encoded:
    """Return an image once for each text that it is matched with."""
    places = torch.zeros(count, dtype=torch.int64, device=images.vector.device)
    return images.take(places) if images.size == 1 else images


def match_in_training(student: Any, accelerator: Accelerator) -> Callable[[Encoded, Encoded, Tensor, Tensor], Tensor]:
    """Return what gives the logits of pairs among n images and m texts, by places (P,) among either: (P, 2).

    It runs in the accelerator's precision. What depends on an image alone is made once for it.

    Raises:
        StudentError: the student cannot match.
    """
    matcher = matcher_of(student, "The student")

    def match(images: Encoded, texts: Encoded, first: Tensor, second: Tensor) -> Tensor:
        with accelerator.autocast():
            prepared = map_tensors(lambda tensor: tensor[first], matcher.prepare_match(images))
            logits = matcher.match(prepared, texts.take(second))
        return logits if logits.dtype == torch.float64 else logits.float()

    return match


def matches(student: Any) -> bool:
    """Tell whether a student has a `match` of its own."""
    return callable(getattr(student, "match", None))


def matcher_of(student: Any, name: str) -> Matcher:
    """Return how a student matches: by its `match`, or else by its scorer of pairs.

    Raises:
        StudentError: it compares vectors alone; `name` is what it is called.
    """
    if matches(student):
        return cast(Matcher, student) if hasattr(student, "prepare_match") else _Unprepared(student)
    scorer = as_student(student).scorer
    if isinstance(scorer, Cosine):
        raise StudentError(
            f"{name} compares vectors by their cosine and has no match of pairs. Name a student with "
            f"`match(images, texts)` (docs/students.md), such as x2vlm:<checkpoint> or blip:<folder>, or one with a "
            f"scorer of pairs."
        )
    return ScorerAsMatcher(scorer)
