"""clip-retrieval's protocol, so that its `ClipClient` works against this server: /knn-service and /indices-list.

An index's name is a model's, or `<model>|<split>` for one split. `deduplicate` makes one of results whose features are
nearer than 0.94, as there; images by address are refused unless a person allowed them, at the server's start.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from anyio import CapacityLimiter, to_thread
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.serve.addresses import fetched
from pipeline.serve.answering import Answering
from pipeline.serve.json_api import checked, checked_values, found
from pipeline.serve.queries import KnnRequest, SearchRequest
from pipeline.serve.served_store import ServedStore

SAME: Final = 0.94
"""Cosine from which two results are one, as in clip-retrieval."""
_OF_SPLIT: Final = "|"
_FETCHERS: Final = 4
"""Requests whose images' addresses are opened at once: a slow site must hold up no other request."""


def routes(answering: Answering) -> list[Route]:
    """Return the two services."""
    fetching = CapacityLimiter(_FETCHERS)

    async def knn(request: Request) -> Response:
        asked = await to_thread.run_sync(checked, KnnRequest, await request.body())
        search = await to_thread.run_sync(_search, asked, answering.fetches_images, limiter=fetching)
        answer = await answering.answer(search)
        hits = (await to_thread.run_sync(found, answer)).results
        if asked.deduplicate and hits:
            slug = answer.store.slug(search.model, search.modality)
            kept = await to_thread.run_sync(_first_of_each, answer.store, slug, np.array([hit.row for hit in hits]))
            hits = [hits[place] for place in kept]
        base = str(request.base_url).rstrip("/")
        results: list[dict[str, Any]] = [{"id": hit.row, "similarity": hit.similarity} for hit in hits]
        # Of further results than `num_images` the protocol gives the ids alone.
        for result, hit in zip(results[: asked.num_images], hits, strict=False):
            result |= {"caption": hit.texts[0] if hit.texts else "", "key": hit.key}
            result |= {"url": base + hit.image} if hit.image else {}
        return JSONResponse(results)

    async def names(request: Request) -> Response:
        now = await to_thread.run_sync(answering.served.now)
        splits = now.store.manifest.splits
        return JSONResponse([*now.models, *(f"{model}{_OF_SPLIT}{split}" for model in now.models for split in splits)])

    return [Route("/knn-service", knn, methods=["POST"]), Route("/indices-list", names)]


def _search(asked: KnnRequest, fetches_images: bool) -> SearchRequest:
    """Return the request in our own words; as there, a text goes before an image, and that before an embedding."""
    if asked.image_url is not None and not fetches_images:
        advice = "Send the image itself, or start the server with --fetch-images."
        raise HTTPException(400, f"image_url is refused: the server opens no addresses. {advice}")
    query: dict[str, Any]
    if asked.text:
        query = {"text": asked.text}
    elif asked.image is None and asked.image_url is not None:
        query = {"image": fetched(asked.image_url)}
    elif asked.image is not None:
        query = {"image": asked.image}
    else:
        query = {"embedding": asked.embedding_input}
    model, _, split = (asked.indice_name or "").partition(_OF_SPLIT)
    count = asked.num_result_ids or asked.num_images
    values = {**query, "modality": asked.modality, "model": model or None, "split": split or None, "count": count}
    return checked_values(values)


def _first_of_each(now: ServedStore, slug: str, rows: NDArray[np.int64]) -> list[int]:
    """Return the places of the results without those that are the same as an earlier one."""
    vectors = now.features(slug).gather(rows).astype(np.float32)
    _, groups = connected_components(csr_array(vectors @ vectors.T > SAME), directed=False)
    return sorted(np.unique(groups, return_index=True)[1].tolist())
