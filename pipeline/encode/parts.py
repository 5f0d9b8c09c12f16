"""From windows back to shards: features take the places of their rows, and each pending shard's part is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.teachers import TeacherCard
from pipeline.encode.encoder import WindowFeatures
from pipeline.encode.windows import Window
from stores import Features, Shard
from stores.features import PartOrigin, write_part
from stores.layout import Layout
from stores.manifest import FeatureSet


class PartWriter:
    """Writes the parts of windows that come in the order of rows; `invalid` counts the rows that failed."""

    def __init__(self, teacher: TeacherCard, shards: Sequence[Shard], layout: Layout, batch_size: int) -> None:
        self._teacher = teacher
        self._batch_size = batch_size
        self._layout = layout
        # Parts are mapped when they are asked for, so those of this run can be read as soon as they are written.
        self._written = Features(layout, teacher.slug, tuple(shards), _entry(teacher))
        self.invalid = 0

    def write(self, window: Window, encoded: WindowFeatures) -> None:
        """Write the parts of the window's pending shards.

        A row whose content first came in a part that is in place takes its features from there.
        """
        rows = window.rows(self._teacher.level)
        features = np.zeros((len(rows), self._teacher.dim), np.float16)
        valid = np.zeros(len(rows), bool)
        places = encoded.rows - rows[0]
        features[places], valid[places] = encoded.features, encoded.valid
        start = 0
        for shard in window.shards:
            here = np.arange(start, start + shard.rows(self._teacher.level))
            start += len(here)
            if len(here) and not window.pending[here[0]]:
                continue
            self._fill(here, window, features, valid)
            self.invalid += int((~valid[here]).sum())
            origin = PartOrigin(teacher_fingerprint=self._teacher.fingerprint, shard_sha256=shard.sha256)
            path = self._layout.features(self._teacher.slug, shard.name)
            write_part(path, features[here], valid[here], origin, self._batch_size)

    def _fill(
        self, here: NDArray[np.int64], window: Window, features: NDArray[np.float16], valid: NDArray[np.bool_]
    ) -> None:
        """Give the rows at the places `here` that repeat another row its features."""
        firsts = window.firsts[here]
        first_row = window.first_row(self._teacher.level)
        repeats = firsts != here + first_row
        inside = repeats & (firsts >= first_row)
        inside[inside] = window.pending[firsts[inside] - first_row]
        features[here[inside]] = features[firsts[inside] - first_row]
        valid[here[inside]] = valid[firsts[inside] - first_row]
        outside = repeats & ~inside
        if outside.any():
            copied = self._written.gather(firsts[outside])
            # Rows that could not be encoded are zero, and only they: the others have length one.
            features[here[outside]], valid[here[outside]] = copied, copied.any(axis=1)


def _entry(teacher: TeacherCard) -> FeatureSet:
    return FeatureSet(
        spec=teacher.spec,
        modality=teacher.modality,
        level=teacher.level,
        shape=(teacher.dim,),
        unit=True,
        precision=teacher.precision,
        fingerprint=teacher.fingerprint,
        parts={},
        invalid=0,
    )
