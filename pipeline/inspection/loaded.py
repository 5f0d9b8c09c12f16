"""The teachers of a store, loaded again: only one whose fingerprint is the stored one may be compared with its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.teachers import Teacher, load_teacher
from pipeline.inspection.teachers import is_default, recorded
from stores import Store, TeacherError


def load_stored(store: Store, slug: str, weights: str | None = None) -> Teacher:
    """Load the teacher whose features lie in the folder `slug`, from `weights` or where the manifest says.

    Raises:
        TeacherError: it cannot be loaded, or is not the one that made the features.
    """
    stored = store.manifest.teachers[slug]
    if weights is None and is_default(store.manifest, slug):
        weights = recorded(store.manifest, f"{stored.modality}_weights")
    teacher = load_teacher(stored.spec, weights, precision=stored.precision or "auto", modality=stored.modality)
    if teacher.fingerprint != stored.fingerprint:
        raise TeacherError(
            f"The teacher {stored.spec} that was loaded is not the one that made {store.root}/features/{slug}: "
            f"fingerprint {teacher.fingerprint[:12]}, expected {stored.fingerprint[:12]}. Its weights, or a library "
            f"that it is made of, have changed, so its features could not be compared with the stored ones. "
            f"Name the weights of then, or run cusa-extract again with those of now."
        )
    return teacher


def encode(teacher: Teacher, items: Sequence[Any]) -> NDArray[np.float32]:
    """Return the L2-normalised features of RGB pictures or texts: (n, dim) float32; a row that failed is all zero."""
    batch = teacher.collate(teacher.prepare(list(items)))
    features = torch.nn.functional.normalize(teacher.encode(batch).float(), dim=1).cpu().numpy()
    good = np.isfinite(features).all(axis=1)
    encoded: NDArray[np.float32] = np.where(good[:, None], features, np.float32(0))
    return encoded
