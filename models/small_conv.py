"""The image tower of the embedded student: a small convolutional network registered with timm.

Three convolutions take 64 × 64 pixels to an 8 × 8 grid, which is kept whole (no pooling), since captions speak of
places; open_clip's projection follows. Small enough to train from scratch on a CPU within a minute.
"""

from __future__ import annotations

from typing import Any

from timm.layers import ConvNormAct
from timm.models import register_model
from torch import Tensor, nn


class SmallConv(nn.Module):
    """(N, 3, 64, 64) images to (N, 4096) features; the interface is that of a timm model without classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormAct(3, 32, kernel_size=7, stride=4, padding=3),
            ConvNormAct(32, 64, kernel_size=3, stride=2),
            ConvNormAct(64, 64, kernel_size=3),
        )
        self.num_features = 64 * 8 * 8
        self.default_cfg = {"pool_size": (8, 8)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Do nothing: there is no classifier to replace."""

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features.flatten(1)


@register_model  # type: ignore[untyped-decorator]
def small_conv(pretrained: bool = False, **_: Any) -> SmallConv:
    """Make the tower, as timm's registry calls it; there are no pretrained weights."""
    return SmallConv()
