"""From what is asked to what is found: queries become vectors, on threads beside the server's, and rows come back.

Shapes: D a feature's dimensions.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

import numpy as np
from anyio import CapacityLimiter, to_thread
from numpy.typing import NDArray

from pipeline.inspection.neighbours import Neighbour, described
from pipeline.inspection.reranker import Query, Reranker
from pipeline.inspection.teachers import load_stored
from pipeline.serve.model_thread import Busy, ModelThread, ServedTower
from pipeline.serve.queries import Modality, SearchRequest, checked_image
from pipeline.serve.served_store import Served, ServedStore
from stores import CusaError, Store
from stores.parameters import Data

ANSWER_SECONDS: Final = 60.0
RERANKING: Final = 8
"""Queries that are reranked or wait for it; more are refused."""
_DECODERS: Final = 2
"""Images of strangers that are decoded at once: each may take its pixels' memory."""
Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found, the most similar first."""

    store: ServedStore
    """In its state of then."""
    model: str
    modality: Modality
    found: tuple[Neighbour, ...]
    encode_seconds: float
    search_seconds: float
    """Of the index, and of the second stage where it was asked for."""


class Answering:
    """Answers what is asked of a store."""

    def __init__(
        self, path: Path, first: str | None, fetches_images: bool = False, reranker: Reranker | None = None
    ) -> None:
        """Open the store; `first` is the model that is asked where none is named.

        `fetches_images` says whether images are taken by their address; `reranker` is the second stage, if any.
        """
        self.served, self._models, self.fetches_images = Served(path, first), ModelThread(), fetches_images
        self._decoders, self.reranker = CapacityLimiter(_DECODERS), reranker
        self._reranks = ThreadPoolExecutor(1, thread_name_prefix="rerank")
        self._reranking = BoundedSemaphore(RERANKING)

    async def warm(self) -> None:
        """Load the first model and read its indices before anyone asks."""
        now = self.served.now()
        for slug in now.towers(None).values():
            await self._models.teacher(_tower(now, slug))
            for split in now.store.manifest.splits:
                await to_thread.run_sync(now.index, slug, split)

    async def answer(self, asked: SearchRequest) -> Answer:
        """Answer one query.

        Raises:
            CusaError: the model, the split or the row is not there, or the image is refused.
            TimeoutError: it takes longer than `ANSWER_SECONDS`.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            now = await to_thread.run_sync(self.served.now)
            slug = now.slug(asked.model, asked.modality)
            started = time.perf_counter()
            vector = await self.vector(now, asked)
            encoded = time.perf_counter()
            rows, similarity = await to_thread.run_sync(_searched, now, slug, vector, asked)
            logits = None
            if asked.rerank:
                places, logits = await self._reranked(now.store, rows, asked)
                rows, similarity = rows[places], similarity[places]
            some = rows[: asked.count], similarity[: asked.count]
            found = await to_thread.run_sync(described, now.store, asked.modality, *some, logits)
        return Answer(
            store=now,
            model=asked.model or now.first,
            modality=asked.modality,
            found=found,
            encode_seconds=encoded - started,
            search_seconds=time.perf_counter() - encoded,
        )

    async def vector(self, now: ServedStore, asked: SearchRequest) -> Vector:
        """Return the query's L2-normalised vector (D,).

        Raises:
            CusaError: the model has no such tower, the store no such row, or the image is refused.
        """
        if asked.embedding is not None:
            return _unit(np.array(asked.embedding, np.float32))
        if asked.row is not None:
            slug = now.slug(asked.model, asked.row_of)
            stored: Vector = now.features(slug).gather(np.array([asked.row])).astype(np.float32)[0]
            return _unit(stored)
        parts = []
        if asked.text is not None:
            tower = _tower(now, now.slug(asked.model, "text"))
            parts.append((asked.text_weight, await self._models.encode(tower, asked.text)))
        if asked.image is not None:
            tower = _tower(now, now.slug(asked.model, "image"))
            teacher = await self._models.teacher(tower)
            checked = partial(checked_image, asked.image, _max_pixels(now))
            item = await to_thread.run_sync(lambda: teacher.preprocess_file(checked()), limiter=self._decoders)
            parts.append((asked.image_weight, await self._models.encode(tower, item)))
        if len(parts) == 1:
            return parts[0][1]
        return _unit(np.sum([np.float32(weight) * vector for weight, vector in parts], axis=0))

    async def _reranked(
        self, store: Store, rows: NDArray[np.int64], asked: SearchRequest
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the places of rows (n,) as the second stage ranks them, and its logits."""
        if self.reranker is None:
            raise CusaError("This server has no second stage. Start it with --rerank <student>.")
        query: Query | None = asked.row if asked.row_of != asked.modality else None
        if query is None and (asked.text is None or asked.image is None):
            query = asked.text if asked.modality == "image" else asked.image
        if query is None:
            raise CusaError(
                "The second stage compares an image with a text: search images by a text or by a caption's row, or "
                "captions by an image or by its row."
            )
        if not self._reranking.acquire(blocking=False):
            raise Busy(f"{RERANKING} queries wait to be reranked. Ask again in a moment.")
        # What no longer waits for its answer still ends before the next one begins: one thread has the model.
        work = self._reranks.submit(self.reranker.rank, store, asked.modality, rows, query, asked.rerank)
        work.add_done_callback(lambda _: self._reranking.release())
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """End the models' thread."""
        self._models.close()
        self._reranks.shutdown(wait=False, cancel_futures=True)


def _searched(now: ServedStore, slug: str, vector: Vector, asked: SearchRequest) -> tuple[NDArray[np.int64], Vector]:
    """Return the rows that are nearest, nearest first, and their similarities."""
    wanted = max(asked.count, asked.rerank)
    similarity, rows = now.search(slug, vector, wanted + 1, asked.split, asked.label)
    # A row is no neighbour of its own.
    own = asked.row if asked.row_of == asked.modality else None
    kept = rows != (-1 if own is None else own)
    rows, similarity = rows[kept][:wanted], similarity[kept][:wanted]
    # What the model could not encode is all zero, and nothing that a second stage could look at.
    encoded = now.features(slug).valid[rows] if asked.rerank else np.ones(len(rows), bool)
    return rows[encoded], similarity[encoded]


def _tower(now: ServedStore, slug: str) -> ServedTower:
    fingerprint = now.store.manifest.features[slug].fingerprint
    return ServedTower(slug=slug, fingerprint=fingerprint, load=partial(load_stored, now.store, slug))


def _max_pixels(now: ServedStore) -> int:
    """Return the bound on images that the store was made with."""
    section = now.store.manifest.parameters.get("data", {})
    value = section.get("max_pixels") if isinstance(section, dict) else None
    return value if isinstance(value, int) else Data().max_pixels


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or not length:
        raise CusaError("The query's vector is zero or not finite, so nothing is near it. Ask for something else.")
    return vector / np.float32(length)
