"""At the door: hosts and origins, the size and the time of a request's body, and what browsers may do with answers.

A server on loopback is within reach of every page in the same browser. Other sites' scripts are kept out in three ways:
no answer may be read from another origin (there are no CORS headers), nothing may be sent from one (`Origin`), and a
name that is made to point here (DNS rebinding) is refused: hosts are addresses, or this machine's names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.queries import MAX_BODY

BODY_SECONDS: Final = 20.0
"""In which a request's body must have come."""
MAX_HELD: Final = 8 * MAX_BODY
"""Bytes of all bodies that are held at once."""
_POLICY: Final = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d+)?")


class Guard:
    """Passes on what may be asked, and marks what is answered."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """Guard `app`, which listens on `host`."""
        self._app, self.held = app, 0
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        fault = self._fault(scope["method"], headers)
        if fault is not None:
            status, problem = fault
            # The connection ends: what else comes of the body is of no use.
            answer = JSONResponse({"error": problem}, status, headers={"Connection": "close"})
            await answer(scope, receive, marked)
            return
        body = _Body(self, receive)
        try:
            await self._app(scope, body.receive, marked)
        finally:
            self.held -= body.held

    def _fault(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, f"This server is not {host[:200]!r}: ask it by its address."
        reads, origin = method in ("GET", "HEAD"), headers.get("origin")
        if not reads and origin is not None and _place(origin) != host.lower():
            return 403, f"A page of {origin[:200]!r} may not ask this server."
        follows_link = reads and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
            return 403, "A page of another site may link here, and not ask this server."
        if not re.fullmatch(r"\d{1,9}", length := headers.get("content-length", "0")) or int(length) > MAX_BODY:
            return 413, f"The request has {length[:20]} bytes, at most {MAX_BODY:,} are taken."
        return None

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Body:
    """A request's body with an end, after `MAX_BODY` bytes and `BODY_SECONDS`; its bytes count among those of all."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive, self._whole = guard, receive, False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self.held = 0

    async def receive(self) -> Message:
        """Return what comes next.

        Raises:
            HTTPException: it is too late, too much, or too much together with all other bodies.
        """
        if self._whole:  # what comes now says that the client has gone, which may take its time
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The request did not come within {BODY_SECONDS:.0f} s.") from None
        count = len(message.get("body", b""))
        self.held += count
        self._guard.held += count
        if self._guard.held > MAX_HELD:
            raise HTTPException(503, "Too much is sent at once. Ask again in a moment.")
        if self.held > MAX_BODY:
            raise HTTPException(413, f"The request has more than {MAX_BODY:,} bytes.")
        self._whole = not message.get("more_body", False)
        return message


def _place(origin: str) -> str | None:
    """Return the host and port of an origin; None of what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
