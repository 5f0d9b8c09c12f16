"""Image teachers from timm: any of its models, with its own weights or those of a local file."""

from __future__ import annotations

from typing import Any, Final, Literal

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor

from models.teachers.image_teacher import ImageTeacher
from models.teachers.teacher import feature_dim, nearest, shortened, weights_digest, weights_file
from stores.errors import TeacherError

ELSEWHERE: Final = ("hf-hub:", "hf_hub:", "local-dir:")
"""timm's own prefixes of models that are not in its list."""


class TimmTeacher(ImageTeacher):
    """A timm model without its classifier: its pooled features are the teacher's."""

    def __init__(
        self, name: str, weights: str | None, device: torch.device, precision: Literal["fp32", "bf16"]
    ) -> None:
        spec = f"timm:{name}"
        _check_name(name)
        network = _create(name, pretrained=weights is None)
        if weights is not None:
            _load_strictly(network, weights, spec)
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


def _check_name(name: str) -> None:
    if name.startswith(ELSEWHERE):
        return
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise TeacherError(f"timm has no model {model!r}. Nearest: {nearest(model, timm.list_models())}.")
    tagged = timm.list_models(f"{model}.*", pretrained=True)
    if tag and name not in tagged:
        raise TeacherError(f"timm has no weights {name!r}. There are: {', '.join(tagged) or 'none'}.")


def _create(name: str, pretrained: bool) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and its hub have no common base for what they raise
        raise TeacherError(
            f"timm:{name} could not be made: {shortened(error)} This machine must reach timm's hub once, "
            f"or have a local file named by teachers.image_weights (--image-weights)."
        ) from None


def _load_strictly(network: Any, weights: str, spec: str) -> None:
    path = weights_file(weights, spec)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        wanted = network.state_dict().keys()
        # Published files hold the classifier, which a teacher leaves out.
        state = {key: value for key, value in state.items() if key in wanted or not key.startswith(heads)}
        network.load_state_dict(state, strict=True)
    except Exception as error:  # torch and safetensors have no common base for what a foreign file makes them raise
        expected = f"the state dict of {spec}, as safetensors or as a torch file that loads with weights_only=True"
        raise TeacherError(shortened(error), path=path, expected=expected) from None
