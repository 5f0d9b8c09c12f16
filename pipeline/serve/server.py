"""The server: what answers at which path, what faults become, and how it listens."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.inspection.reranker import Reranker
from pipeline.serve import clip_retrieval, json_api, listed_pairs, pictures_by_row, search_page
from pipeline.serve.answering import ANSWER_SECONDS, Answering
from pipeline.serve.guards import Guard
from pipeline.serve.model_thread import Busy
from pipeline.serve.served_store import BeingMade
from stores import CusaError, ParameterError
from stores.console import console
from stores.errors import DamagedStoreError

HEAD_SECONDS: Final = 10.0
"""In which a request's head must have come."""
CONNECTIONS: Final = 512
_OF_PROGRAMS: Final = ("/api/", "/knn-service", "/indices-list", "/openapi.json", "/image/", "/thumbnail/")


def serve(path: Path, *, teacher: str | None, host: str, port: int, fetch_images: bool, rerank: str | None) -> None:
    """Serve the store at `path` until Ctrl-C.

    Raises:
        CusaError: there is no such store or model, or the address cannot be listened on.
    """
    answering = Answering(path, teacher, fetch_images, Reranker(rerank) if rerank else None)
    listening = listen(host, port)
    console.print(
        f"{path} · {answering.served.now().first}\nhttp://{_shown(listening)}/  (Ctrl-C ends)", soft_wrap=True
    )
    server(answering, host).run(sockets=[listening])


def server(answering: Answering, host: str) -> uvicorn.Server:
    """Return a server of what `answering` answers, which listens on sockets of `host`."""
    config = uvicorn.Config(
        application(answering, host),
        http=Deadline,
        ws="none",
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def application(answering: Answering, host: str) -> ASGIApp:
    """Return the application; it ends the models' thread when it ends."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(answering))
        yield
        warming.cancel()
        answering.close()

    rooms = (search_page, json_api, listed_pairs, clip_retrieval, pictures_by_row)
    inner = Starlette(
        routes=[route for room in rooms for route in room.routes(answering)],
        exception_handlers={HTTPException: _refused, CusaError: _refused, TimeoutError: _refused, Exception: _refused},
        lifespan=lifespan,
    )
    # Around all of it, so that failures are marked as well.
    return Guard(inner, host=host)


async def _warm(answering: Answering) -> None:
    try:
        await answering.warm()
    except CusaError as error:
        console.print(f"The first model cannot be asked: {error.message}", style="yellow")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; of port 0 the system chooses one.

    Raises:
        ParameterError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or str(error)
        advice = "Name another --port, or --host 127.0.0.1."
        raise ParameterError(f"cannot be listened on ({what})", where=f"{host}:{port}", advice=advice) from None
    # asyncio sets this only where a socket names its protocol; without it an answer's second packet waits 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _refused(request: Request, error: Exception) -> Response:
    """Answer with the reason, as a page or as JSON; what is no one's mistake is logged, and not told."""
    status, problem = _told(error)
    if not request.url.path.startswith(_OF_PROGRAMS):
        return search_page.problem(status, problem)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return JSONResponse({"error": problem}, status, headers=headers)


def _told(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, str(error.detail)
        case BeingMade() | Busy():
            return 503, error.message
        case DamagedStoreError():
            return 500, error.message
        case CusaError():
            return 400, error.message
        case TimeoutError():
            return 504, f"No answer within {ANSWER_SECONDS:.0f} s."
    return 500, "The server failed; its log says how."


class Deadline(H11Protocol):
    """uvicorn's HTTP with an end to waiting for a request's head, which a slow sender could draw out for ever."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None and self.cycle is not None and not self.cycle.response_complete:
            self._head.cancel()
            self._head = None
        elif self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
