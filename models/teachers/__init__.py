"""Teachers: frozen single-modality models, by name."""

from __future__ import annotations

import inspect
import re
from typing import Final

import torch

from models.packaged_weights import PACKAGED
from models.teachers.card import TeacherCard, TeacherSpec
from models.teachers.teacher import Teacher
from stores.commands import loading
from stores.errors import TeacherError
from stores.hardware import ComputePrecision, resolve_device, resolve_precision
from stores.parameters import Precision
from stores.plugins import import_factory

__all__ = ["Teacher", "TeacherCard", "TeacherSpec", "load_teacher"]

FAMILIES: Final = (
    "hog-color",
    "minilm",
    "mpnet",
    "efficientnet-lite0, -lite1 or -lite2",
    "unicom:<ViT-B/32, ViT-B/16, ViT-L/14 or ViT-L/14@336px>[@tokens]",
    "sentence-transformers:<hub name or folder>",
    "timm:<model>",
    "grid:<timm model>@<rows>x<columns>",
    "open-clip:<model>/<pretrained>",
    "run:<folder of a trained run>[@uni]",
    "package.module:factory",
)


def load_teacher(
    spec: str,
    weights: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    modality: str | None = None,
) -> Teacher:
    """Load the teacher that `spec` (`family:name`) names.

    `modality` chooses the tower of an open-clip model or of a run (the image tower if it is None); others have one.

    A `package.module:factory` is called with the keywords `weights`, `device` and `precision` (resolved), and returns
    a `Teacher`. Whatever that calls itself, its name here is `spec`, by which it is asked for again.

    Raises:
        TeacherError: there is no such teacher, or it cannot be used.
        WeightsError: its weights cannot be had.
    """
    teacher = _load(spec, weights, device, precision, modality)
    try:
        teacher.spec = spec
    except AttributeError as error:
        advice = "Make it a plain attribute."
        raise TeacherError(f"`spec` cannot be set on its teacher ({error})", where=spec, advice=advice) from None
    return teacher


def auto_precision(spec: str, device: torch.device) -> ComputePrecision:
    """Return the precision that "auto" means for a teacher on a device."""
    # In bf16 depthwise convolutions stray: a smallest cosine of 0.994 to fp32. hog-color knows fp32 alone.
    return "fp32" if "efficientnet" in spec or spec == "hog-color" else resolve_precision("auto", device)


def _load(spec: str, weights: str | None, device: str, precision: Precision, modality: str | None) -> Teacher:
    where = resolve_device(device)
    how = auto_precision(spec, where) if precision == "auto" else precision
    family, _, name = spec.partition(":")
    if weights is not None and family in ("hog-color", "run", "sentence-transformers", *PACKAGED):
        raise TeacherError(f"The teacher {spec} takes no separate weights, but {weights} was given. Leave them out.")
    # Each family is imported when it is asked for: their libraries take seconds to load.
    match family, name:
        case "hog-color", "":
            from models.teachers.hog_color import HogColorTeacher

            return HogColorTeacher()
        case ("minilm" | "mpnet", "") | ("sentence-transformers", _):
            with loading():
                from models.teachers.sentences import SentenceTeacher

            return SentenceTeacher(spec, name or family, where, how)
        case "unicom", _:
            from models.teachers.unicom import UnicomTeacher

            return UnicomTeacher(name, weights, where, how)
        case ("efficientnet-lite0" | "efficientnet-lite1" | "efficientnet-lite2", "") | ("timm", _):
            from models.teachers.timm_images import TimmTeacher

            return TimmTeacher(spec, name or family, weights, where, how)
        case "grid", _:
            from models.teachers.timm_images import GridTeacher

            return GridTeacher(name, weights, where, how)
        case "open-clip", _:
            from models.teachers.open_clip_towers import open_clip_teacher

            return open_clip_teacher(name, weights, where, how, modality or "image")
        case "run", _:
            from models.teachers.run_towers import run_teacher

            return run_teacher(name, where, how, modality or "image")
    if not re.fullmatch(r"[\w.]+:\w+", spec):
        raise TeacherError(f"No teacher is called {spec!r}. Known: {'; '.join(FAMILIES)}.")
    factory = import_factory(spec, TeacherError)
    given = {"weights": weights, "device": where, "precision": how}
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise TeacherError(f"{spec} must take the keywords {', '.join(given)}: {error}.") from None
    teacher = factory(**given)
    if not isinstance(teacher, Teacher):
        raise TeacherError(f"{spec} returned a {type(teacher).__name__}, expected a models.teachers.Teacher.")
    return teacher
