"""Image and text teachers from open_clip: one tower of any of its models; the other is dropped after loading.

Shapes: B batch, L tokens, D the features' size.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.factory import parse_model_name
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.loading import nearest, shortened, weights_digest, weights_file
from models.teachers.image_teacher import ImageTeacher
from models.teachers.teacher import Teacher, TextTeacher, feature_dim
from models.teachers.text_identity import tokenizer_identity
from stores.errors import TeacherError
from stores.hardware import ComputePrecision


def open_clip_teacher(
    name: str, weights: str | None, device: torch.device, precision: ComputePrecision, modality: str
) -> Teacher:
    """Return the tower for `modality` of the model `name`: `<model>/<pretrained>`, or `<model>` with a weights file.

    `<pretrained>` is one of open_clip's tags or a local file. A tag together with a weights file says how the file's
    model prepares its pictures.

    Raises:
        TeacherError: there is no such model or tag, or its weights cannot be loaded.
    """
    spec = f"open-clip:{name}"
    if parse_model_name(name)[0]:
        model_name, tag = name, ""
    else:
        model_name, _, tag = name.partition("/")
        _check_name(model_name, tag, weights)
    model = _create(model_name, tag, weights, spec)
    if modality == "image":
        return OpenClipImageTeacher(model.visual, spec, device, precision)
    return OpenClipTextTeacher(model.text, _tokenizer(model_name, spec), spec, device, precision)


class OpenClipImageTeacher(ImageTeacher):
    """The image tower."""

    def __init__(self, tower: nn.Module, spec: str, device: torch.device, precision: ComputePrecision) -> None:
        settings = PreprocessCfg(**tower.preprocess_cfg)  # type: ignore[arg-type] # open_clip keeps it on the module
        self._tower = tower.eval()
        transform = image_transform_v2(settings, is_train=False)
        height, width = settings.size if isinstance(settings.size, (tuple, list)) else (settings.size, settings.size)
        dim = feature_dim(self._features, torch.zeros(1, settings.num_channels, height, width), spec)
        weighed = weights_digest(tower)
        tower.to(device)
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, weights=weighed, transform=transform)

    def forward(self, batch: Tensor) -> Tensor:
        return self._features(batch.to(self.device, non_blocking=True))

    def _features(self, images: Tensor) -> Tensor:
        return _pooled(self._tower(images))


class OpenClipTextTeacher(TextTeacher):
    """The text tower.

    Where no token sees a later one and the features are read at the end mark (as in CLIP itself), what comes after
    the mark changes nothing and is not computed: a caption takes 14 places or so, not the context's 77.
    """

    def __init__(
        self, tower: Any, tokenizer: Any, spec: str, device: torch.device, precision: ComputePrecision
    ) -> None:
        self._tower = tower.eval().to(device)
        self._tokenizer = tokenizer
        self._ends_at_mark = _ends_at_mark(tower)
        self._causal_mask: Tensor | None = tower.attn_mask if self._ends_at_mark else None
        self.device = device
        example = self.collate(self.prepare(["a text"]))
        dim = feature_dim(self.forward, example, spec)
        tokens = tokenizer_identity(tokenizer, lambda text: tokenizer([text])[0].tolist())
        identity = [weights_digest(tower), tokens, int(tokenizer.context_length)]
        super().__init__(spec=spec, dim=dim, precision=precision, device=device, identity=identity)

    def prepare(self, items: list[str]) -> list[Any]:
        """Return each text's tokens up to its end mark, or the whole context's: (L,) int32."""
        if not items:
            return []
        tokens = self._tokenizer(items)
        ends = self._marks(tokens) if self._ends_at_mark else torch.full((len(items),), tokens.shape[1])
        return [row[:end].clone() for row, end in zip(tokens.int(), ends.tolist(), strict=True)]

    def collate(self, items: list[Tensor]) -> Tensor:
        """Return (B, L) int64, padded with zeros after the end mark to the longest of the batch."""
        return pad_sequence(items, batch_first=True).long()

    def forward(self, batch: Tensor) -> Tensor:
        if self._causal_mask is not None:
            # open_clip's tower takes shorter texts than its context, but not its mask with them.
            width = batch.shape[1]
            self._tower.attn_mask = self._causal_mask[:width, :width]
        return _pooled(self._tower(batch.to(self.device, non_blocking=True)))

    def _marks(self, tokens: Tensor) -> Tensor:
        """Return the length of each text with its end mark, as the tower's pooling finds it: (B,)."""
        marked = tokens if self._tower.pool_type == "argmax" else (tokens == self._tower.eos_id).int()
        return marked.argmax(dim=1) + 1


def _ends_at_mark(tower: nn.Module) -> bool:
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and tower.pool_type in ("argmax", "eos")
    )


def _pooled(output: Any) -> Tensor:
    """Return a tower's features; those of CoCa come with its tokens."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def _check_name(model: str, tag: str, weights: str | None) -> None:
    if open_clip.get_model_config(model) is None:
        raise TeacherError(f"open_clip has no model {model!r}. Nearest: {nearest(model, open_clip.list_models())}.")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag and weights is None:
        raise TeacherError(
            f"open-clip:{model} has no weights. Name those of open_clip: open-clip:{model}/<pretrained>, one of "
            f"{', '.join(tags) or 'none'}; or a local file: teachers.image_weights, teachers.text_weights."
        )
    if tag and not get_pretrained_cfg(model, tag):
        if weights is not None:
            raise TeacherError(f"open_clip has no weights {tag!r} of {model}. There are: {', '.join(tags) or 'none'}.")
        if "/" not in tag and "." not in tag:
            raise TeacherError(
                f"open_clip has no weights {tag!r} of {model}. There are: {', '.join(tags) or 'none'}; or name a file."
            )


def _create(model: str, tag: str, weights: str | None, spec: str) -> Any:
    published = get_pretrained_cfg(model, tag) if tag else {}
    local = weights or (tag if tag and not published else None)
    if local is not None:
        weights_file(local, spec)
    try:
        return open_clip.create_model(
            model,
            pretrained=local or tag or None,
            precision="fp32",
            # Both towers as modules of their own, whichever way the model is usually built.
            force_custom_text=True,
            force_quick_gelu=bool(published.get("quick_gelu")),
            force_preprocess_cfg=merge_preprocess_dict({}, published),
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # open_clip, torch and the hub have no common base for what they raise
        wrong = f"{local} does not hold its weights" if local else "this machine must reach its hub once"
        raise TeacherError(
            f"{spec} could not be loaded ({wrong}): {shortened(error)} A local file must hold the state dict of the "
            f"whole model, as .safetensors or as a torch file that loads with weights_only=True."
        ) from None


def _tokenizer(model: str, spec: str) -> Any:
    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:  # it may come from a hub
        raise TeacherError(f"The tokenizer of {spec} could not be loaded: {shortened(error)}") from None
