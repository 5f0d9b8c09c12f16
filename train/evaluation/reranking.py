"""The second stage of retrieval: a first stage's nearest, ranked anew by a student that looks at both items at once.

1. Of every image the k nearest texts, and of every text the k nearest images, by any first stage.
2. Each of these pairs is scored once for both directions, image by image: what depends on the image alone is made once
   for it, and its texts are taken by length, so that none is padded. The scores lie in a mapped file, and a scoring
   that was interrupted goes on where it stood.
3. In either direction a query's own k are ranked by their scores, and all else behind them as the first stage has it.

Shapes: n images, m texts, P pairs, C candidates of a query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from models.encoded import Encoded
from models.matching import Matcher
from stores.atomic import write_json
from stores.errors import CusaError
from stores.ownership import json_object
from train.evaluation.rankings import Rows, top
from train.evaluation.similarities import Places, Similarities, digest_of, on_device

PARTIAL, STATE = "pairs.partial", "pairs.json"
_SAVE_EVERY = 30.0
"""Seconds of scoring that an interruption costs at most, and an image's."""


class Candidates(NamedTuple):
    """What a first stage finds for each of q queries, best first."""

    ids: NDArray[np.int64]
    """(q, k); below zero: none."""
    scores: NDArray[np.float32]
    """(q, k) by the second stage."""

    def of(self, queries: Places, kept: NDArray[np.int64]) -> Candidates:
        """Return those of some queries, where `kept` (C,) has each candidate's new number, below zero: it is gone."""
        ids = self.ids[queries]
        return Candidates(np.where(ids < 0, -1, kept[ids]), self.scores[queries])


@dataclass(frozen=True, eq=False)
class RerankedSimilarities(Similarities):
    """A first stage's similarities with each query's candidates ranked anew.

    Of a `part`, those candidates that lie in it are: a query may have fewer of them than k.
    """

    first: Similarities
    texts_of_images: Candidates
    images_of_texts: Candidates
    seconds_per_pair: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.first.shape

    def rows(self, places: Places | None = None) -> Rows:
        return _RerankedRows(self.first.rows(places), _taken(self.texts_of_images, places))

    def columns(self, places: Places | None = None) -> Rows:
        return _RerankedRows(self.first.columns(places), _taken(self.images_of_texts, places))

    def part(self, first: Places, second: Places) -> RerankedSimilarities:
        images, texts = (np.full(count, -1) for count in self.shape)
        images[first], texts[second] = np.arange(len(first)), np.arange(len(second))
        found = self.texts_of_images.of(first, texts), self.images_of_texts.of(second, images)
        return RerankedSimilarities(self.first.part(first, second), *found, self.seconds_per_pair)

    def block(self, first: Places, second: Places) -> Tensor:
        """Return the first stage's: scores of the second are there for candidates alone."""
        return self.first.block(first, second)

    @property
    def depth(self) -> int:
        """The k of either direction, or fewer where there are no more items."""
        return max(int(found.ids.shape[1]) for found in (self.texts_of_images, self.images_of_texts))

    def limited(self, k: int) -> RerankedSimilarities:
        """Return what a smaller k gives."""
        both = (self.texts_of_images, self.images_of_texts)
        images, texts = (Candidates(found.ids[:, :k], found.scores[:, :k]) for found in both)
        return RerankedSimilarities(self.first, images, texts, self.seconds_per_pair)

    @property
    def pairs(self) -> int:
        """How many pairs are scored, those of both directions once."""
        return len(_pairs(self.texts_of_images.ids, self.images_of_texts.ids))


@dataclass(frozen=True, eq=False)
class _RerankedRows:
    first: Rows
    found: Candidates

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    def __iter__(self) -> Iterator[Tensor]:
        start = 0
        for block in self.first:
            ids, scores = (torch.from_numpy(array[start : start + len(block)]).to(block.device) for array in self.found)
            yield _ranked_anew(block.double(), ids, scores.double())
            start += len(block)


def _ranked_anew(block: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Return (b, C) first-stage scores with those at `ids` (b, k) replaced, and all others brought below them."""
    there = ids >= 0
    lowest = scores.masked_fill(~there, torch.inf).amin(dim=1, keepdim=True)
    lowest = torch.where(there.any(dim=1, keepdim=True), lowest, 0.0)
    moved = block + (lowest - block.amax(dim=1, keepdim=True) - 1)
    query, place = there.nonzero().unbind(1)
    moved[query, ids[query, place]] = scores[query, place]
    return moved


def reranked(
    first: Similarities,
    matcher: Matcher,
    encoded: tuple[Encoded, Encoded],
    k: int,
    combine: Literal["replace", "add"],
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
    pause: Callable[[], None] = lambda: None,
) -> RerankedSimilarities:
    """Rank the first stage's k nearest anew, both ways.

    Args:
        first: of n images with m texts.
        matcher: the second stage.
        encoded: those images and texts by the second stage's student, on the CPU.
        k: how many candidates of each query.
        combine: the score is the logit of match, or that and the first stage's score.
        batch_size: pairs at once.
        accelerator: where, and in which precision, pairs are scored.
        folder: where an interrupted scoring goes on.
        pause: called now and then, and may raise.

    Raises:
        CusaError: a score is not finite, or the second student has other items.
    """
    if (found := tuple(one.size for one in encoded)) != first.shape:
        raise CusaError(f"The first stage ranks {first.shape} items, the second has {found}; they must be the same.")
    texts, images = (np.concatenate(list(top(rows, k))) for rows in (first.rows(), first.columns()))
    keys = _pairs(texts, images)
    scores, seconds = _Scoring(matcher, encoded, keys, batch_size, accelerator, folder).run(pause)
    if combine == "add":
        scores = scores + _first_scores(first, keys)
    count = first.shape[1]
    of_images = scores[np.searchsorted(keys, np.arange(len(texts))[:, None] * count + texts)]
    of_texts = scores[np.searchsorted(keys, images * count + np.arange(len(images))[:, None])]
    each = seconds / max(1, len(keys))
    return RerankedSimilarities(first, Candidates(texts, of_images), Candidates(images, of_texts), each)


class _Scoring:
    """Pairs, by number (image · m + text) and rising, as they are scored."""

    def __init__(
        self,
        matcher: Matcher,
        encoded: tuple[Encoded, Encoded],
        keys: NDArray[np.int64],
        batch_size: int,
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._place, self._state = folder / PARTIAL, folder / STATE
        self._matcher, self._keys, self._batch, self._accelerator = matcher, keys, batch_size, accelerator
        self._images, self._texts = encoded
        mask = self._texts.mask
        parts = self._texts.parts
        length = 0 if parts is None else parts.shape[1]
        # Up to the last one that is there: what pads before it stays, and is masked.
        ends = np.full((self._texts.size, 1), length) if mask is None else mask.numpy() * np.arange(1, length + 1)
        self._lengths = ends.max(axis=1, initial=1)
        about = digest_of(matcher, *encoded, torch.from_numpy(keys))
        self._about = {"of": about, "pairs": len(keys), "precision": str(accelerator.mixed_precision)}

    def run(self, pause: Callable[[], None]) -> tuple[NDArray[np.float32], float]:
        """Return the (P,) scores and the seconds that they took, those of an earlier start included."""
        known = json_object(self._state)
        going_on = self._place.exists() and {name: known.get(name) for name in self._about} == self._about
        done, seconds = (int(known["finished"]), float(known["seconds"])) if going_on else (0, 0.0)
        mode: Literal["r+", "w+"] = "r+" if going_on else "w+"
        self._save(done, seconds)  # before there are scores, as in `similarities`
        scores: Any = np.memmap(self._place, np.float32, mode, shape=(len(self._keys),))
        started = saved = time.monotonic()
        count = self._texts.size
        images, starts = np.unique(self._keys[done:] // count, return_index=True)
        stops = [*starts[1:].tolist(), len(self._keys) - done]
        for image, start, stop in zip(images.tolist(), starts.tolist(), stops, strict=True):
            part = slice(done + start, done + stop)
            scores[part] = self._of_image(image, self._keys[part] % count)
            if (now := time.monotonic()) - saved > _SAVE_EVERY:
                saved = now
                scores.flush()
                self._save(part.stop, seconds + now - started)
            try:
                pause()
            except BaseException:
                scores.flush()
                self._save(part.stop, seconds + time.monotonic() - started)
                raise
        found = np.array(scores)
        del scores
        self._place.unlink()
        self._state.unlink()
        return found, seconds + time.monotonic() - started

    def _save(self, finished: int, seconds: float) -> None:
        write_json(self._state, {**self._about, "finished": finished, "seconds": seconds})

    @torch.inference_mode()
    def _of_image(self, image: int, texts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of one image with some texts, those of one length at a time."""
        scores = np.empty(len(texts), np.float32)
        order = np.argsort(self._lengths[texts], kind="stable")
        device = self._accelerator.device
        with self._accelerator.autocast():
            prepared = self._matcher.prepare_match(on_device(self._images.take(slice(image, image + 1)), device))
            for run in np.split(order, np.flatnonzero(np.diff(self._lengths[texts[order]])) + 1):
                for start in range(0, len(run), self._batch):
                    places = run[start : start + self._batch]
                    some = self._texts.take(torch.from_numpy(texts[places]))
                    scores[places] = self._matched(prepared, _cut(some, int(self._lengths[texts[places[0]]])))
        return scores

    def _matched(self, prepared: Any, texts: Encoded) -> NDArray[np.float32]:
        logits = self._matcher.match(prepared, on_device(texts, self._accelerator.device))
        if logits.shape != (texts.size, 2):
            raise CusaError(f"match() returned {tuple(logits.shape)} for {texts.size} texts; expected (P, 2).")
        if not torch.isfinite(logits).all():
            raise CusaError("The second stage's scores are not finite; the model is broken.")
        return logits[:, 1].float().cpu().numpy()


def _cut(texts: Encoded, length: int) -> Encoded:
    """Return texts of one length without what pads them."""
    if texts.parts is None or texts.mask is None:
        return texts
    return texts._replace(parts=texts.parts[:, :length], mask=texts.mask[:, :length])


def _pairs(texts: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the pairs of both directions, each once, rising: those of an image are side by side."""
    count = len(images)
    ours = (np.arange(len(texts))[:, None] * count + texts)[texts >= 0]
    theirs = (images * count + np.arange(count)[:, None])[images >= 0]
    return np.unique(np.concatenate([ours, theirs]))


def _first_scores(first: Similarities, keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the first stage's scores of pairs by number: (P,)."""
    count, found, start = first.shape[1], [], 0
    for block in first.rows():
        low, high = np.searchsorted(keys, (start * count, (start + len(block)) * count))
        places = torch.from_numpy(keys[low:high] - start * count).to(block.device)
        found.append(block.flatten()[places].float().cpu().numpy())
        start += len(block)
    return np.concatenate(found)


def _taken(found: Candidates, places: Places | None) -> Candidates:
    return found if places is None else Candidates(found.ids[places], found.scores[places])
