"""X2-VLM's files, read strictly and written back under the same keys; and random weights of a size.

Nearly all measures follow from the shapes of the weights. What does not, the heads of the text encoder, is in the
file's `config` or in files beside the weights; where none says it they are as many as the image encoder's, as
published, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from safetensors import safe_open
from torch import Tensor

from models.loading import made_with, shortened, weights_file
from models.x2vlm import FUSION, LAYER, X2VLM, Size, TowerSize
from stores.console import console
from stores.errors import StudentError, WeightsError
from stores.json_objects import parsed_object

State = dict[str, Tensor]
FORM: Final = "x2vlm:<weights file>[@<pixels>], or x2vlm:base|large[@<pixels>] for random weights"
_LARGE: Final = TowerSize(width=1024, heads=16, hidden=4096)
RANDOM: Final = {"base": Size(), "large": Size(image=replace(_LARGE, layers=24), text=_LARGE)}
_COMPUTED: Final = re.compile(r".*\.(relative_position_index|position_ids)|text_encoder\.cls\..*|bbox_head\..*")
"""Keys of files that hold nothing that is needed here."""
_TABLE: Final = "relative_position_bias_table"
_HEADS: Final = ("num_attention_heads", "text_heads", "num_heads", "heads")
_TOKENS: Final = ("max_tokens",)
_OF_IMAGES: Final = ("vision", "visual", "image", "beit", "vit")
"""How sections of the image encoder begin."""
_STRETCHES: Final = (1.01, 1.5)
"""Between which BEiT looks for the ratio of its row."""
Configs = list[Mapping[str, Any]]


def load_x2vlm(name: str) -> X2VLM:
    """Return the student that `x2vlm:<name>` names; one of a file comes in evaluation mode.

    Raises:
        StudentError: the name is of another form.
        WeightsError: there is no such file, or it holds no X2-VLM.
    """
    found = re.fullmatch(r"(.+?)(?:@([1-9]\d*))?", name)
    if found is None:
        raise StudentError(found=f"x2vlm:{name}", expected=FORM)
    place, pixels = found[1], int(found[2] or 0)
    if place in RANDOM:
        size = RANDOM[place]
        return X2VLM(_sized(size, pixels))
    path = weights_file(place, f"x2vlm:{name}")
    state, configs = _read(path)
    try:
        size = _sized(_size(state, configs, path), pixels)
        model = made_with(_fitted(_renamed(state), size), lambda: X2VLM(size))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        expected = "the weights of an X2-VLM with BEiT-2 and BERT, as its authors save them"
        raise WeightsError(shortened(error), path=path, expected=expected) from None
    return model.eval()


def _read(path: Path) -> tuple[State, Configs]:
    """Return a file's weights, and its configuration before those beside it."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
                config = parsed_object((file.metadata() or {}).get("config", "{}"))
        else:
            content, config = torch.load(path, map_location="cpu", weights_only=True), {}
            if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
                content, config = content["model"], content.get("config", {})
    except Exception as error:  # torch and safetensors have no common base for what a foreign file makes them raise
        expected = "weights as safetensors, or as a torch file that loads with weights_only=True"
        raise WeightsError(shortened(error), path=path, expected=expected) from None
    if not isinstance(content, Mapping) or not all(isinstance(one, Tensor) for one in content.values()):
        raise WeightsError("holds no state dict", path=path, expected="{model: state dict, config: …}")
    configs = [config] * isinstance(config, Mapping) + _beside(path)
    names = ((re.sub(r"^text_encoder\.bert\.", "text_encoder.", key), tensor) for key, tensor in content.items())
    return {key: tensor for key, tensor in names if not _COMPUTED.fullmatch(key)}, configs


def _beside(path: Path) -> Configs:
    """Return the configurations in JSON or YAML beside a weights file: of its own name, and config."""
    stems = path.stem, path.name, f"{path.stem}_config", "config"
    places = [path.with_name(f"{stem}{suffix}") for stem in stems for suffix in (".json", ".yaml", ".yml")]
    found: Configs = []
    for file in places:
        try:
            content: Any = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError, RecursionError, YAMLError) as error:
            console.print(f"{file} is no configuration that can be read, and is passed over: {shortened(error)}")
            continue
        if isinstance(content, Mapping):
            found.append(content)
    return found


def _said(configs: Configs, names: tuple[str, ...]) -> int | None:
    """Return the whole number under the first of the names, of the first configuration that has one of them."""
    values = (section.get(name) for config in configs for name in names for section in _sections(config))
    return next(
        (int(one) for one in values if isinstance(one, int | str) and re.fullmatch(r"0*[1-9]\d*", str(one))), None
    )


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and its sections, but for those of the image encoder; each once, however often it is named.

    By YAML's aliases a few lines name a section millions of times, or within itself.
    """
    waiting, seen = [config], set()
    while waiting:
        section = waiting.pop()
        if id(section) in seen:
            continue
        seen.add(id(section))
        yield section
        inner = [value for key, value in section.items() if not str(key).startswith(_OF_IMAGES)]
        waiting += [value for value in reversed(inner) if isinstance(value, Mapping)]


def _size(state: State, configs: Configs, path: Path) -> Size:
    patches, words = state["vision_encoder.patch_embed.proj.weight"], "text_encoder.embeddings."
    table = state[f"vision_encoder.blocks.0.attn.{_TABLE}"]
    heads, patch = table.shape[1], patches.shape[-1]
    if not heads or not patch:
        raise ValueError(f"patches of {patch} pixels and {heads} heads")
    layers = sorted(_layers(state, LAYER))
    fusion = [layer for layer in layers if _crosses(state, layer)]
    if not fusion:
        raise ValueError("No layer of the text encoder attends to the image.")
    image = TowerSize(
        width=len(patches),
        layers=len(_layers(state, "vision_encoder.blocks.")),
        heads=heads,
        hidden=len(state["vision_encoder.blocks.0.mlp.fc1.bias"]),
    )
    said = _said(configs, _HEADS)
    if said is None:
        console.print(
            f"{path}: neither it nor a config.json beside it says how many heads its text encoder has; it is taken to "
            f"have {heads}, as its image encoder.",
            style="yellow",
        )
    text = TowerSize(
        width=state[f"{words}word_embeddings.weight"].shape[1],
        layers=len(layers) - len(fusion),
        heads=said or heads,
        hidden=len(state[f"{LAYER}0.intermediate.dense.bias"]),
    )
    return Size(
        pixels=patch * ((isqrt(len(table) - 3) + 1) // 2),
        patch=patch,
        image=image,
        text=text,
        fusion_layers=len(fusion),
        vocabulary=len(state[f"{words}word_embeddings.weight"]),
        positions=len(state[f"{words}position_embeddings.weight"]),
        types=len(state[f"{words}token_type_embeddings.weight"]),
        dim=len(state["vision_proj.bias"]),
        tokens=_said(configs, _TOKENS) or Size.tokens,
    )


def _layers(state: State, prefix: str) -> set[int]:
    return {int(key.removeprefix(prefix).partition(".")[0]) for key in state if key.startswith(prefix)}


def _sized(size: Size, pixels: int) -> Size:
    if pixels % size.patch:
        raise StudentError(found=f"{pixels} pixels", expected=f"a multiple of {size.patch}, the side of a patch")
    return replace(size, pixels=pixels or size.pixels)


def _renamed(state: State) -> State:
    """Return the weights under our keys: the layers that attend to an image are the fusion encoder's."""
    first = min(layer for layer in _layers(state, LAYER) if _crosses(state, layer))
    renamed = {}
    for key, tensor in state.items():
        layer = int(key.removeprefix(LAYER).partition(".")[0]) if key.startswith(LAYER) else -1
        rest = key.removeprefix(f"{LAYER}{layer}.")
        renamed[f"{FUSION}{layer - first}.{rest}" if layer >= first else key] = tensor
    return renamed


def _crosses(state: State, layer: int) -> bool:
    return f"{LAYER}{layer}.crossattention.self.query.weight" in state


def _fitted(state: State, size: Size) -> State:
    """Return the weights with position tables of the size's grid."""
    rows = (2 * size.pixels // size.patch - 1) ** 2 + 3
    return {
        key: _stretched(tensor, size.pixels // size.patch) if key.endswith(_TABLE) and len(tensor) != rows else tensor
        for key, tensor in state.items()
    }


def _stretched(table: Tensor, grid: int) -> Tensor:
    """Return a table of relative positions for another grid: a cubic spline between places that lie in a geometric row.

    That is BEiT's way: near neighbours stay as near as they were, far ones move apart, by a ratio that is halved out
    within bounds. The last three rows, of the class token, stay. timm's own function gives other numbers under this
    torch.
    """
    from scipy.interpolate import RectBivariateSpline  # here, since few files need it

    side = isqrt(len(table) - 3)
    low, high = _STRETCHES
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if sum(ratio**k for k in range(side // 2)) > grid - 1 else (ratio, high)
    far = np.cumsum(ratio ** np.arange(side // 2))
    places, wanted = np.concatenate([-far[::-1], [0], far]), np.arange(1 - grid, grid)
    planes = table[:-3].T.reshape(-1, side, side).double().numpy()
    stretched = np.stack([RectBivariateSpline(places, places, plane)(wanted, wanted) for plane in planes])
    return torch.cat([torch.from_numpy(stretched).flatten(1).T.to(table.dtype), table[-3:]])
