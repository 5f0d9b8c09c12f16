"""A teacher by name, to be loaded where it is needed, and what others need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Self

from models.teachers.teacher import Teacher
from stores import plugins
from stores.console import console
from stores.errors import TeacherError
from stores.hardware import ComputePrecision
from stores.layout import teacher_slug
from stores.manifest import FeatureSet
from stores.modality import LEVELS, Level
from stores.parameters import Precision


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Which teacher of a modality, with its weights where the name does not say."""

    spec: str
    weights: str | None
    modality: str | None
    """None: whichever it is of."""
    held: Precision = "auto"
    """What a store's features of it were made in. "auto" keeps to that: another would make all of them stale."""
    recorded_in: Path | None = field(default_factory=plugins.record)
    """The folder whose record names it, wherever it is loaded; None: a person does."""

    def load(self, device: str, precision: Precision) -> Teacher:
        """Load the teacher onto `device`.

        Raises:
            TeacherError: it cannot be loaded, or is of the other modality.
        """
        from models.teachers import auto_precision, load_teacher

        how = self.held if precision == "auto" else precision
        with plugins.recorded_in(self.recorded_in):
            teacher = load_teacher(self.spec, self.weights, device, how, self.modality)
        if how != precision and how != auto_precision(self.spec, teacher.device) and parent_process() is None:
            console.print(
                f"{self.spec} stays in {how}, as its features in the store: extract.precision: auto. Another would "
                f"make all of them anew."
            )
        if self.modality is not None and teacher.modality != self.modality:
            raise TeacherError(f"teachers.{self.modality} is {self.spec}, which is a teacher of {teacher.modality}s.")
        return teacher


@dataclass(frozen=True, kw_only=True)
class TeacherCard:
    """What a store records of a teacher; see `Teacher`."""

    spec: str
    modality: str
    dim: int
    shape: tuple[int, ...]
    unit: bool
    precision: ComputePrecision
    fingerprint: str

    @property
    def level(self) -> Level:
        """Which rows of a store it encodes."""
        return LEVELS[self.modality]

    @property
    def slug(self) -> str:
        """The name of its folder in a store."""
        return teacher_slug(self.spec, self.modality)

    def feature_set(self, parts: dict[str, str]) -> FeatureSet:
        """Return the manifest's entry of its features, of which `parts` are the checksums; no row is absent yet."""
        return FeatureSet(
            spec=self.spec,
            modality=self.modality,
            level=self.level,
            shape=self.shape,
            unit=self.unit,
            precision=self.precision,
            fingerprint=self.fingerprint,
            parts=parts,
            invalid=0,
        )

    @classmethod
    def of(cls, teacher: Teacher) -> Self:
        """Describe a loaded teacher."""
        return cls(
            spec=teacher.spec,
            modality=teacher.modality,
            dim=teacher.dim,
            shape=teacher.shape,
            unit=teacher.unit,
            precision=teacher.precision,
            fingerprint=teacher.fingerprint,
        )
