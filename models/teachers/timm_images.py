"""Image teachers from timm: any of its models, with its own weights, packaged ones, or those of a local file.

`grid:<timm model>@<rows>x<columns>` makes a grid of region vectors, for students that compare regions. The regions that
published figures of such students rest on come from a detector (bottom-up attention, 1707.07998); this is what any
image encoder gives in their place.

Shapes: B batch, C channels of the network's last feature map, R regions.
"""

from __future__ import annotations

import re

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torch.nn import functional

from models.loading import weights_digest
from models.teachers.image_teacher import ImageTeacher
from models.teachers.teacher import feature_dim
from models.timm_networks import feature_map, timm_network
from stores.errors import TeacherError
from stores.hardware import ComputePrecision


class TimmTeacher(ImageTeacher):
    """A timm model without its classifier: its pooled features are the teacher's."""

    def __init__(
        self, spec: str, name: str, weights: str | None, device: torch.device, precision: ComputePrecision
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


class GridTeacher(ImageTeacher):
    """The last feature map of a timm network, averaged over the cells of a grid: (R, C), row by row."""

    unit = False

    def __init__(self, name: str, weights: str | None, device: torch.device, precision: ComputePrecision) -> None:
        parts = re.fullmatch(r"(.+)@([1-9]\d?)x([1-9]\d?)", name)
        if parts is None:
            expected = "grid:<timm model>@<rows>x<columns>, such as grid:efficientnet-lite0@6x6"
            raise TeacherError(found=f"grid:{name}", expected=expected)
        self._grid = int(parts[2]), int(parts[3])
        self._network = timm_network(parts[1], weights).eval()
        settings = resolve_model_data_config(self._network)
        with torch.inference_mode():
            channels = feature_map(self._network, torch.zeros(1, *settings["input_size"])).shape[1]
        regions = self._grid[0] * self._grid[1]
        super().__init__(
            spec=f"grid:{name}",
            dim=regions * channels,
            precision=precision,
            device=device,
            weights=weights_digest(self._network),
            transform=create_transform(**settings, is_training=False),
        )
        self.shape = regions, channels
        self._network.to(device)

    def forward(self, batch: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(
            feature_map(self._network, batch.to(self.device, non_blocking=True)), self._grid
        )
        return cells.flatten(2).mT.flatten(1)
