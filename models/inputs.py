"""Inputs: how an item of a modality becomes tensors. Training and measuring load by the same ones.

Shapes: n items, S pixels, L the longest of a batch.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from models.preprocessing import Preprocessing, Transform
from stores import Store
from stores.features import FeatureRows
from stores.images import decode_rgb
from stores.modality import Level

STEP: Final = 8
"""Texts of a batch are padded to a multiple of so many tokens: few shapes, and even ones."""
Rows = NDArray[np.int64]


class Padded(NamedTuple):
    """Sequences of a batch, padded to its longest."""

    values: Tensor
    """(n, L) or (n, L, …)."""
    mask: Tensor
    """(n, L) bool: what is no padding."""


Tensors = Tensor | Padded
"""A batch of items of one modality, as a student encodes it."""


class Items(Protocol):
    """Where items come from, by row: a store, or a mixture of stores."""

    def image(self, row: int) -> bytes:
        """Return the encoded image file of a sample; nothing where it has none."""

    def pictured(self, rows: Rows) -> NDArray[np.bool_] | None:
        """Return which samples have an image, (n,); None: all of all."""

    def text(self, row: int) -> str:
        """Return the text of a caption."""

    def stored(self, name: str, rows: Rows) -> NDArray[np.floating[Any]]:
        """Return rows of stored features: (n, …)."""

    def present(self, name: str, rows: Rows) -> NDArray[np.bool_] | None:
        """Return which rows have stored features, (n,); None: all rows have."""


class Input(ABC):
    """How the items of a modality are loaded. The level, sample or caption, says which rows of a store have one."""

    level: Level
    augmented = False
    """Whether training may see items otherwise than measuring."""
    reads: tuple[str, ...] = ()
    """The names of the stored features that it needs."""

    @abstractmethod
    def batch(self, items: Items, rows: Rows) -> Tensors:
        """Return a batch, as it is measured."""

    def present(self, items: Items, rows: Rows) -> NDArray[np.bool_] | None:
        """Return which rows have an item, (n,); None: all have. What a batch holds in place of others means nothing."""
        return None


class EachItem(Input):
    """An input whose items are made one by one, so that they can be cached, or seen otherwise each time."""

    def batch(self, items: Items, rows: Rows) -> Tensors:
        return self.collate([self.item(items, int(row), augment=False) for row in rows])

    @abstractmethod
    def item(self, items: Items, row: int, augment: bool) -> Tensor:
        """Return one item; with `augment` as training sees it, which may draw from the global generators."""

    @abstractmethod
    def collate(self, made: Sequence[Tensor]) -> Tensors:
        """Make a batch of items."""


class Pixels(EachItem):
    """Images, decoded and transformed: (n, 3, S, S)."""

    level: Level = "sample"

    def __init__(self, transform: Transform, augmented: Transform | None = None) -> None:
        """Take an RGB image to (3, S, S) by `transform`, and by `augmented` where `train.augment` asks for it."""
        self.prepare, self._augmented = Preprocessing(transform), augmented or transform
        self.augmented = augmented is not None

    def __repr__(self) -> str:
        """Tell the transform that items are measured by, whose name alone would not say what it does."""
        return f"{type(self).__name__}({self.prepare.transform})"

    def present(self, items: Items, rows: Rows) -> NDArray[np.bool_] | None:
        return items.pictured(rows)

    def item(self, items: Items, row: int, augment: bool) -> Tensor:
        data = items.image(row) or _white()
        return self._augmented(decode_rgb(data)) if augment else self.prepare(data)

    def collate(self, made: Sequence[Tensor]) -> Tensors:
        return torch.stack(list(made))


@cache
def _white() -> bytes:
    """Return an image file that stands where there is none, since every row of a batch has pixels."""
    white = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(white, "PNG")
    return white.getvalue()


class Tokens(EachItem):
    """Texts as token numbers, padded to the longest of their batch rather than to the longest that a model takes."""

    level: Level = "caption"

    def __init__(self, tokenizer: Callable[[list[str]], Tensor], padding: int | None = None) -> None:
        """Tokenise by `tokenizer`, texts to (n, length) integers.

        `padding` is the number that fills the end of a text, which is cut off; batches are as long as their longest
        text, in steps of `STEP`. None: a text is as the tokenizer made it, and wholly unmasked.
        """
        self._tokenizer, self._padding = tokenizer, padding

    def tokens(self, texts: list[str]) -> list[Tensor]:
        """Return the tokens of texts from anywhere, each (length,), as `collate` takes them."""
        return [self._cut(tokens) for tokens in self._tokenizer(texts)]

    def texts(self, texts: list[str]) -> Tensors:
        """Return a batch of texts from anywhere."""
        return self.collate(self.tokens(texts))

    def item(self, items: Items, row: int, augment: bool) -> Tensor:
        return self.tokens([items.text(row)])[0]

    def collate(self, made: Sequence[Tensor]) -> Tensors:
        lengths = torch.tensor([len(tokens) for tokens in made])
        values = pad_sequence(list(made), batch_first=True, padding_value=self._padding or 0)
        if self._padding is not None:
            length = min(-(-values.shape[1] // STEP) * STEP, self._longest)
            values = functional.pad(values, (0, length - values.shape[1]), value=self._padding)
        return Padded(values, torch.arange(values.shape[1]) < lengths[:, None])

    @cached_property
    def _longest(self) -> int:
        return self._tokenizer([""]).shape[1]

    def _cut(self, tokens: Tensor) -> Tensor:
        if self._padding is None:
            return tokens
        used = (tokens != self._padding).nonzero()
        # A copy: a view would keep the padding of all texts that were tokenised with it.
        return tokens[: int(used[-1]) + 1 if len(used) else 1].clone()


class Stored(Input):
    """Rows of features that the store holds under a name, vectors or regions: (n, …) float32."""

    def __init__(self, name: str, level: Level = "sample") -> None:
        self.reads, self.level = (name,), level

    def features(self, store: Store) -> FeatureRows:
        """Return what a store holds under the name."""
        return store.features(self.reads[0])

    def present(self, items: Items, rows: Rows) -> NDArray[np.bool_] | None:
        return items.present(self.reads[0], rows)

    def batch(self, items: Items, rows: Rows) -> Tensors:
        return torch.from_numpy(items.stored(self.reads[0], rows)).float()
