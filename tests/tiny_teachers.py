"""A user's own teachers, named as `tiny_teachers:<factory>`: as small as a teacher can be."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.teachers import Teacher


class MeanColour(Teacher):
    """The mean colour of a picture."""

    modality = "image"

    def preprocess(self, item: Image.Image) -> Tensor:
        return torch.tensor(np.asarray(item.resize((4, 4))), dtype=torch.float32).mean(dim=(0, 1))

    def forward(self, batch: Tensor) -> Tensor:
        return batch + 1


class Length(Teacher):
    """How often each of the first letters occurs in a text; a text without letters cannot be encoded."""

    modality = "text"

    def preprocess(self, item: str) -> Tensor:
        return torch.tensor([float(item.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"])

    def forward(self, batch: Tensor) -> Tensor:
        return batch


def mean_colour(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return MeanColour(spec="tiny_teachers:mean_colour", dim=3, precision=precision, device=device, identity=weights)


def length(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Length(spec="tiny_teachers:length", dim=26, precision=precision, device=device, identity=weights)


def not_a_teacher(**_: Any) -> str:
    return "hello"


class NoE(Length):
    """A teacher that fails on some texts."""

    def preprocess(self, item: str) -> Tensor:
        letters = super().preprocess(item)
        return letters * float("nan") if "centre" in item else letters


def no_e(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return NoE(spec="tiny_teachers:no_e", dim=26, precision=precision, device=device, identity=weights)


class Imprecise(MeanColour):
    """A teacher whose features fall apart in bf16."""

    def forward(self, batch: Tensor) -> Tensor:
        return -batch if torch.is_autocast_enabled("cpu") else batch


def imprecise(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Imprecise(spec="tiny_teachers:imprecise", dim=3, precision=precision, device=device, identity=weights)


class Counting(Length):
    """A teacher that remembers how many texts it was given."""

    seen: ClassVar[list[int]] = []

    def length(self, prepared: Tensor) -> int:
        return int(prepared.sum())

    def forward(self, batch: Tensor) -> Tensor:
        self.seen.append(len(batch))
        return batch


def counting(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Counting(spec="tiny_teachers:counting", dim=26, precision=precision, device=device, identity=weights)


class Small(MeanColour):
    """A teacher on a device that holds eleven pictures."""

    seen: ClassVar[list[int]] = []

    def forward(self, batch: Tensor) -> Tensor:
        if len(batch) > 11:
            raise torch.OutOfMemoryError("no more than eleven")
        self.seen.append(len(batch))
        return super().forward(batch)


def small(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Small(spec="tiny_teachers:small", dim=3, precision=precision, device=device, identity=weights)


class Fatal(MeanColour):
    """A teacher whose process dies."""

    def forward(self, batch: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch


def fatal(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Fatal(spec="tiny_teachers:fatal", dim=3, precision=precision, device=device, identity=weights)


class FatalText(Length):
    """A text teacher whose process dies."""

    def forward(self, batch: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch


def fatal_text(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return FatalText(spec="tiny_teachers:fatal_text", dim=26, precision=precision, device=device, identity=weights)


def unlike(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    """A teacher that no two processes load alike."""
    return MeanColour(spec="tiny_teachers:unlike", dim=3, precision=precision, device=device, identity=os.getpid())


class Alone(Length):
    """A teacher that computes one batch at a time."""

    def forward(self, batch: Tensor) -> Tensor:
        if getattr(self, "busy", False):
            raise RuntimeError("two batches at once")
        self.busy = True
        time.sleep(0.01)
        self.busy = False
        return batch


def alone(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Alone(spec="tiny_teachers:alone", dim=26, precision=precision, device=device, identity=weights)


def unlike_its_name(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return MeanColour(spec="hog-color", dim=3, precision=precision, device=device, identity=weights)


def unlike_any_name(weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]) -> Teacher:
    return Length(spec="Letters/v2 (mine)", dim=26, precision=precision, device=device, identity=weights)
