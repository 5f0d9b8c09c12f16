"""Images by address, where a person allows it: opened with care, since whoever asks chooses what this machine opens.

Only http and https, only public addresses (not this machine, its network or a cloud's metadata), the very address that
was looked up, no redirects, and bounds on size and time.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from pipeline.serve.queries import MAX_IMAGE
from stores import CusaError

SECONDS: Final = 10.0
"""In which an image must have come."""
_PIECE: Final = 2**16
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the open network."""
    return address.is_global and not address.is_multicast


def fetched(url: str, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """Return what lies at an address, whatever it is.

    Raises:
        CusaError: it is of another scheme, not `allowed`, cannot be reached, answers with anything but the thing
            itself, has more than `MAX_IMAGE` bytes, or takes longer than `SECONDS`.
    """
    end = time.monotonic() + SECONDS
    try:
        connection, target = _connected(url, allowed)
        try:
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "cusa"})
            with connection.getresponse() as answer:
                if answer.status != http.client.OK:
                    raise CusaError("image_url answers with status", found=answer.status, expected=200)
                return _read(answer, end)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CusaError(f"image_url cannot be opened ({error}).") from None


def _connected(url: str, allowed: Callable[[Address], bool]) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to the address that was looked up, and what to ask for there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CusaError(where="image_url", found=url[:200], expected="an address that begins with http:// or https://")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    place = str(found[0][4][0])
    if not allowed(ipaddress.ip_address(place)):
        raise CusaError(f"image_url leads to {place}, which is no public address.")
    stream = socket.create_connection((place, port), timeout=SECONDS)
    if parts.scheme == "https":
        stream = ssl.create_default_context().wrap_socket(stream, server_hostname=parts.hostname)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=SECONDS)
    connection.sock = stream
    return connection, f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}"


def _read(answer: http.client.HTTPResponse, end: float) -> bytes:
    data = bytearray()
    while piece := answer.read1(_PIECE):
        data += piece
        if len(data) > MAX_IMAGE:
            raise CusaError("bytes at image_url", found=f"more than {MAX_IMAGE:,}", expected=f"at most {MAX_IMAGE:,}")
        if time.monotonic() > end:
            raise CusaError(f"image_url did not come within {SECONDS:.0f} s.")
    return bytes(data)
