"""The teachers of a store: as its manifest tells them, and loaded again.

Only one whose fingerprint is the stored one may be compared with its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stores import Manifest, Store, StoreError, TeacherError
from stores.modality import LEVELS
from stores.plugins import recorded_in

if TYPE_CHECKING:
    from models.teachers import Teacher


def default_slug(store: Store, modality: str) -> str:
    """Return the folder name of the `modality`'s teacher that the store was last made with, or its only one.

    Raises:
        StoreError: there is none, or the manifest does not tell which.
    """
    slugs = [slug for slug, teacher in store.manifest.teachers.items() if teacher.modality == modality]
    named = [slug for slug in slugs if store.manifest.features[slug].spec == recorded(store.manifest, modality)]
    if len(named or slugs) != 1:
        advice = f"Run cusa-extract with a teacher of {modality}s, or name one with --teacher."
        raise StoreError(f"teachers of {modality}s", path=store.root, found=slugs, expected="one", advice=advice)
    return (named or slugs)[0]


def cross_modal_slugs(manifest: Manifest, spec: str | None = None) -> dict[str, str] | None:
    """Return the folder names of a cross-modal teacher's towers by modality; None where there is none.

    Without a `spec` it is the one that the store was last made with, or its only one.
    """
    towers: dict[str, dict[str, str]] = {}
    for slug, teacher in manifest.teachers.items():
        towers.setdefault(teacher.spec, {})[teacher.modality] = slug
    whole = {name: found for name, found in towers.items() if len(found) == len(LEVELS)}
    named = spec or recorded(manifest, "further")
    if spec is None and named not in whole and len(whole) == 1:
        named = next(iter(whole))
    return whole.get(named or "")


def is_default(manifest: Manifest, slug: str) -> bool:
    """Tell whether the store was last made with this teacher."""
    teacher = manifest.features[slug]
    return teacher.spec in (recorded(manifest, teacher.modality), recorded(manifest, "further"))


def recorded(manifest: Manifest, key: str) -> str | None:
    """Return a value of the section `teachers` among the parameters that the store was last made with."""
    section = manifest.parameters.get("teachers")
    value = section.get(key) if isinstance(section, dict) else None
    return value if isinstance(value, str) else None


def load_stored(store: Store, slug: str, weights: str | None = None) -> Teacher:
    """Load the teacher whose features lie in the folder `slug`, from `weights` or where the manifest says.

    Raises:
        TeacherError: it cannot be loaded, or is not the one that made the features.
    """
    from models.teachers import load_teacher  # here: seconds, which a row's neighbours need not wait

    stored = store.manifest.teachers[slug]
    if weights is None and stored.spec == recorded(store.manifest, stored.modality):
        weights = recorded(store.manifest, f"{stored.modality}_weights")
    with recorded_in(store.root):
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
    return encode_prepared(teacher, teacher.prepare(list(items)))


def encode_prepared(teacher: Teacher, prepared: list[Any]) -> NDArray[np.float32]:
    """Return the same of what the teacher has prepared."""
    import torch

    features = torch.nn.functional.normalize(teacher.encode(teacher.collate(prepared)), dim=1).cpu().numpy()
    good = np.isfinite(features).all(axis=1)
    encoded: NDArray[np.float32] = np.where(good[:, None], features, np.float32(0))
    return encoded
