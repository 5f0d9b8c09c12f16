"""The teachers of a store, as its manifest tells them."""

from __future__ import annotations

from stores import Manifest, Store, StoreError


def default_slug(store: Store, modality: str) -> str:
    """Return the folder name of the `modality`'s teacher that the store was last made with, or its only one.

    Raises:
        StoreError: there is none, or the manifest does not tell which.
    """
    slugs = [slug for slug, teacher in store.manifest.teachers.items() if teacher.modality == modality]
    named = [slug for slug in slugs if is_default(store.manifest, slug)]
    if len(named or slugs) != 1:
        advice = f"Run cusa-extract with a teacher of {modality}s, or name one with --teacher."
        raise StoreError(f"teachers of {modality}s", path=store.root, found=slugs, expected="one", advice=advice)
    return (named or slugs)[0]


def is_default(manifest: Manifest, slug: str) -> bool:
    """Tell whether the store was last made with this teacher."""
    teacher = manifest.features[slug]
    return recorded(manifest, teacher.modality) == teacher.spec


def recorded(manifest: Manifest, key: str) -> str | None:
    """Return a value of the section `teachers` among the parameters that the store was last made with."""
    section = manifest.parameters.get("teachers")
    value = section.get(key) if isinstance(section, dict) else None
    return value if isinstance(value, str) else None
