"""Image teachers from timm: any of its models, with its own weights, packaged ones, or those of a local file."""

from __future__ import annotations

from typing import Literal

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from models.loading import weights_digest
from models.teachers.image_teacher import ImageTeacher
from models.teachers.teacher import feature_dim
from models.timm_networks import timm_network


class TimmTeacher(ImageTeacher):
    """A timm model without its classifier: its pooled features are the teacher's."""

    def __init__(
        self, spec: str, name: str, weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]
    ) -> None:
        network = timm_network(name, weights)
        settings = resolve_model_data_config(network)
        self._network = network.eval()
        transform = create_transform(**settings, is_training=False)
        dim = feature_dim(network, torch.zeros(1, *settings["input_size"]), spec)
        weighed = weights_digest(network)
        network.to(device)
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, weights=weighed, transform=transform)

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self._network(batch.to(self.device, non_blocking=True))
        return features
