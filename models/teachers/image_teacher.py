"""Image teachers that see a picture through a transform."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from models.loading import described
from models.preprocessing import Preprocessing, Transform
from models.teachers.teacher import Teacher
from stores.hardware import ComputePrecision


class ImageTeacher(Teacher):
    """A teacher of images (3, S, S), made by a transform of its own; files of the usual kind take the fast path."""

    modality = "image"

    def __init__(
        self,
        *,
        spec: str,
        dim: int,
        precision: ComputePrecision,
        device: torch.device,
        weights: str,
        transform: Transform,
    ) -> None:
        """Know the teacher by the digest of its `weights` and by what its `transform` says of itself."""
        self._preprocessing = Preprocessing(transform)
        self.decodes_in_threads = self._preprocessing.decodes_in_threads
        identity = [weights, described(transform)]
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)

    def preprocess(self, item: Image.Image) -> Tensor:
        """Apply the transform: (3, S, S) float32."""
        return self._preprocessing.transform(item)

    def preprocess_file(self, data: bytes) -> Tensor:
        return self._preprocessing(data)
