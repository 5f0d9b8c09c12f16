"""Images by address, where a person allows it: opened with care, since whoever asks chooses what this machine opens.

Only http and https, only public addresses (no loopback, no private network, no cloud's metadata, nothing that stands
for another address), the very address that was looked up, no redirects, and bounds on size and time.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from pipeline.serve.queries import MAX_IMAGE
from stores import CusaError

SECONDS: Final = 10.0
"""In which an image must have come."""
_PIECE: Final = 2**16
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the open network, and not a way to another one (6to4, NAT64, mapped)."""
    if not address.is_global or address.is_multicast:
        return False
    return address.version == 4 or (address in _UNICAST and address not in _SIX_TO_FOUR)


def fetched(url: str, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """Return what lies at an address, whatever it is.

    Raises:
        CusaError: it is of another scheme, not `allowed`, cannot be reached, answers with anything but the thing
            itself, has more than `MAX_IMAGE` bytes, or takes longer than `SECONDS`.
    """
    end = time.monotonic() + SECONDS
    try:
        connection, target = _connected(url, allowed)
        timer = threading.Timer(end - time.monotonic(), _ended, [connection.sock])
        timer.start()
        try:
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "cusa"})
            with connection.getresponse() as answer:
                if answer.status != http.client.OK:
                    raise CusaError("image_url answers with status", found=answer.status, expected=200)
                return _read(answer)
        finally:
            timer.cancel()
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


def _ended(stream: socket.socket) -> None:
    """End whatever still waits for a stream."""
    with suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _read(answer: http.client.HTTPResponse) -> bytes:
    data = bytearray()
    while piece := answer.read1(_PIECE):
        data += piece
        if len(data) > MAX_IMAGE:
            raise CusaError("bytes at image_url", found=f"more than {MAX_IMAGE:,}", expected=f"at most {MAX_IMAGE:,}")
    if answer.length:
        raise CusaError(f"image_url did not come whole within {SECONDS:.0f} s.")
    return bytes(data)
