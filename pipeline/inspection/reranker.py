"""A second stage over what an index finds: a student that looks at an image and a text at once ranks it anew.

Shapes: n rows of the modality that was searched.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoded import Encoded, map_tensors, moved
from models.inputs import Input, Pixels, Rows, Tensors, Tokens
from models.matching import matcher_of
from models.trained import load_aligned
from stores import CusaError, Store
from stores.columns import Column
from stores.features import Features
from stores.hardware import resolve_device, resolve_precision

_BATCH: Final = 32
"""Items at once, which bounds the memory."""
Query = str | bytes | int
"""A text, an image file, or a row of the store: of a caption where images are searched, else of a sample."""


class Reranker:
    """The second stage, loaded."""

    def __init__(self, spec: str) -> None:
        """Load a student by name: a run's folder, a checkpoint, or one as it is published.

        Raises:
            CusaError: there is none, or it compares vectors alone.
        """
        self.spec, self._device = spec, resolve_device("auto")
        self._model = load_aligned(spec).eval().to(self._device)
        self._matcher = matcher_of(self._model.student, spec)
        self._has_bf16 = resolve_precision("auto", self._device) == "bf16"

    def rank(
        self, store: Store, modality: str, rows: Rows, query: Query, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rank the first k of rows (n,), best first, anew; the others, and what it has nothing of, follow as they are.

        Returns:
            Their places (n,) in the new order, and the logits of match in that order (n,), NaN beyond the k.

        Raises:
            CusaError: see `logits`.
        """
        places = np.arange(len(rows))
        present = self._input(modality).present(_Items(store), rows[:k])
        looked_at = places[:k] if present is None else places[:k][present]
        logits = self.logits(store, modality, rows[looked_at], query)
        # By falling logit, and equal ones by rising row, as everywhere.
        order, others = np.lexsort((rows[looked_at], -logits)), np.setdiff1d(places, looked_at)
        unknown = np.full(len(others), np.nan, np.float32)
        return np.concatenate([looked_at[order], others]), np.concatenate([logits[order], unknown])

    @torch.inference_mode()
    def logits(self, store: Store, modality: str, rows: Rows, query: Query) -> NDArray[np.float32]:
        """Return how well rows (n,) of a modality match a query of the other one: (n,), the logit of match.

        Raises:
            CusaError: the student cannot take such a query or such rows, or a score is not finite.
        """
        other = "text" if modality == "image" else "image"
        asked, found = self._query(other, store, query), [np.empty(0, np.float32)]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._has_bf16):
            encoded = self._encoded(other, asked)
            image = self._matcher.prepare_match(encoded) if other == "image" else None
            for start in range(0, len(rows), _BATCH):
                some = self._encoded(modality, self._items(modality, store, rows[start : start + _BATCH]))
                if other == "text":
                    text = encoded.take(torch.zeros(some.size, dtype=torch.int64, device=self._device))
                    logits = self._matcher.match(self._matcher.prepare_match(some), text)
                else:
                    logits = self._matcher.match(image, some)
                found.append(logits[:, 1].float().cpu().numpy())
        scores = np.concatenate(found)
        if not np.isfinite(scores).all():
            raise CusaError("The scores are not finite; the model is broken.", where=self.spec)
        return scores

    def _encoded(self, modality: str, items: Tensors) -> Encoded:
        encoded = self._model.encode(modality, moved(items, self._device))
        return map_tensors(lambda t: t.float() if t.is_floating_point() else t, encoded)

    def _query(self, modality: str, store: Store, query: Query) -> Tensors:
        if isinstance(query, int):
            return self._items(modality, store, np.array([query]))
        given = self._input(modality)
        if isinstance(query, str) and isinstance(given, Tokens):
            return given.texts([query])
        if isinstance(query, bytes) and isinstance(given, Pixels):
            return given.collate([given.prepare(query)])
        raise CusaError(
            f"reads each {modality} from the store's features, so it cannot rank for a new one",
            where=self.spec,
            advice="Ask for a row of the store, or name another student.",
        )

    def _items(self, modality: str, store: Store, rows: Rows) -> Tensors:
        given, items = self._input(modality), _Items(store)
        present = given.present(items, rows)
        if present is not None and not present.all():
            raise CusaError(f"has nothing of the {modality}s {rows[~present][:5].tolist()} to look at", where=self.spec)
        return given.batch(items, rows)

    def _input(self, modality: str) -> Input:
        given = self._model.interface.inputs.get(modality)
        if given is None:
            raise CusaError("inputs", where=self.spec, found=list(self._model.modalities), expected=["image", "text"])
        return given


class _Items:
    """A store's items by row."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._features: dict[str, Features] = {}

    def image(self, row: int) -> bytes:
        return self._store.images[row]

    def pictured(self, rows: Rows) -> NDArray[np.bool_]:
        return self._store.images.present(rows)

    def text(self, row: int) -> str:
        return str(Column(self._store.captions["text"]).values(np.array([row]))[0])

    def stored(self, name: str, rows: Rows) -> NDArray[np.floating[Any]]:
        return self._of(name).gather(rows)

    def present(self, name: str, rows: Rows) -> NDArray[np.bool_]:
        return self._of(name).valid[rows]

    def _of(self, name: str) -> Features:
        if name not in self._features:
            self._features[name] = self._store.features(name)
        return self._features[name]
