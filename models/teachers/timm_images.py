"""Image teachers from timm: any of its models, with its own weights, packaged ones, or those of a local file."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from models.loading import weights_digest
from models.teachers.teacher import Teacher, feature_dim
from models.timm_networks import timm_network


class TimmTeacher(Teacher):
    """A timm model without its classifier: its pooled features are the teacher's."""

    modality = "image"

    def __init__(
        self, spec: str, name: str, weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]
    ) -> None:
        network = timm_network(name, weights)
        settings = resolve_model_data_config(network)
        self._network = network.eval()
        self._transform = create_transform(**settings, is_training=False)
        dim = feature_dim(network, torch.zeros(1, *settings["input_size"]), spec)
        identity = [weights_digest(network), repr(self._transform)]
        network.to(device)
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)

    def preprocess(self, item: Image.Image) -> Tensor:
        """Apply the model's own transform for evaluation: (3, H, W) float32."""
        tensor: Tensor = self._transform(item)
        return tensor

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self._network(batch.to(self.device, non_blocking=True))
        return features
