"""Teachers that know the features of a store by heart: another division of the same data needs no encoding."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.teachers import Teacher
from stores import Store, TeacherError
from stores.images import decode_rgb
from stores.parameters import Teachers


def known_teachers(store: object) -> Teachers:
    """Return the teachers that give what the two of a store gave; the store stands for their weights."""
    place = str(store)
    return Teachers(image=f"{__name__}:images", image_weights=place, text=f"{__name__}:texts", text_weights=place)


class KnownFeatures(Teacher):
    """The features that a store holds, by an item's content: (B, D)."""

    def __init__(self, modality: str, weights: str, table: dict[str, int]) -> None:
        self.modality, self._rows = modality, table
        store = Store.open(weights)
        (slug,) = (name for name, card in store.manifest.teachers.items() if card.modality == modality)
        features = store.features(slug)
        self._features: NDArray[Any] = features.gather(np.arange(len(features)))
        identity = [features.fingerprint]
        super().__init__(
            spec=f"{__name__}:{modality}s",
            dim=features.dim,
            precision="fp32",
            device=torch.device("cpu"),
            identity=identity,
        )

    def preprocess(self, item: Image.Image | str) -> Tensor:
        """Return the item's row, (); -1 of an unknown one, such as the image by which the encoder measures a batch."""
        return torch.tensor(self._rows.get(_content(item), -1))

    def forward(self, batch: Tensor) -> Tensor:
        if (batch < 0).any():
            raise TeacherError(f"One {self.modality} is none of the store's whose features are known.")
        return torch.from_numpy(self._features[batch.numpy()]).float()


def images(weights: str, **_: object) -> KnownFeatures:
    """Know the images of the store at `weights`."""
    store = Store.open(weights)
    table = {_content(decode_rgb(store.images[row])): row for row in range(len(store.samples))}
    return KnownFeatures("image", weights, table)


def texts(weights: str, **_: object) -> KnownFeatures:
    """Know the captions of the store at `weights`."""
    table = {_content(text): row for row, text in enumerate(Store.open(weights).captions["text"].to_pylist())}
    return KnownFeatures("text", weights, table)


def _content(item: Image.Image | str) -> str:
    return sha256(item.encode() if isinstance(item, str) else item.tobytes()).hexdigest()
