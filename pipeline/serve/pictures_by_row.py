"""Pictures out of the store's tars, by row: thumbnails and whole files, which a browser keeps."""

from __future__ import annotations

import re
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.serve.answering import Answering
from pipeline.serve.served_store import ServedStore
from stores.images import DecodingError
from stores.thumbnails import jpeg_thumbnail

THUMBNAIL: Final = 320
"""Longest side, in pixels."""
_KINDS: Final = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}
_DECODERS: Final = 4
"""Thumbnails that are made at once: each may take its picture's memory."""
_KEPT: Final = "private, max-age=31536000, immutable"
_ASKED_AGAIN: Final = "private, no-cache"


def routes(answering: Answering) -> list[Route]:
    """Return /thumbnail/ROW and /image/ROW; with the image's digest as `v`, as pages name them, they stay for good."""
    decoders = CapacityLimiter(_DECODERS)

    async def thumbnail(request: Request) -> Response:
        return await _answered(request, answering, decoders)

    async def image(request: Request) -> Response:
        return await _answered(request, answering, None)

    return [Route("/thumbnail/{row}", thumbnail), Route("/image/{row}", image)]


def row_of(request: Request, rows: int) -> int:
    """Return the row that a path names.

    Raises:
        HTTPException: it is none of the store's.
    """
    text = request.path_params["row"]
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII) or int(text) >= rows:
        raise HTTPException(404, f"There is no row {text[:40]!r}; rows go from 0 to {rows - 1:,}.")
    return int(text)


def picture_path(now: ServedStore, row: int, kind: str = "thumbnail") -> str | None:
    """Return where a sample's picture is asked for; None where it has none."""
    digest = _digest(now, row)
    return f"/{kind}/{row}?v={digest}" if digest else None


async def _answered(request: Request, answering: Answering, decoders: CapacityLimiter | None) -> Response:
    """Answer with a picture's file, or with what is decoded of it on one of the `decoders`' threads."""
    now = await to_thread.run_sync(answering.served.now)
    row = row_of(request, len(now.store.samples))
    digest = _digest(now, row)
    if digest is None:
        raise HTTPException(404, f"The sample {row} has no image.")
    kept = _KEPT if request.query_params.get("v") == digest else _ASKED_AGAIN
    headers = {"ETag": f'"{digest}-{"small" if decoders else "whole"}"', "Cache-Control": kept}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = await to_thread.run_sync(now.store.images.__getitem__, row)
    if decoders is None:
        kind = next((name for first, name in _KINDS.items() if data.startswith(first)), "application/octet-stream")
        return Response(data, media_type=kind, headers=headers)
    try:
        small = await to_thread.run_sync(jpeg_thumbnail, data, THUMBNAIL, limiter=decoders)
        return Response(small, media_type="image/jpeg", headers=headers)
    except DecodingError as error:
        raise HTTPException(404, f"The picture of row {row} cannot be decoded: {error}") from None


def _digest(now: ServedStore, row: int) -> str | None:
    """Return what tells a picture from others, the same in every state of the store; None where there is none."""
    digest: str | None = now.store.samples["image_sha256"][row].as_py()
    return digest and digest[:16]
