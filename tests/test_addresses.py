"""Images by address: what is opened, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.serve import addresses
from pipeline.serve.addresses import fetched
from stores import CusaError

CONTENT = bytes(range(256)) * 300


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/a.png?size=1"
        self.send_response(200 if found else 302 if self.path == "/moved" else 404)
        if self.path == "/moved":
            self.send_header("Location", "/a.png?size=1")
        self.end_headers()
        self.wfile.write(CONTENT if found else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_lies_at_an_address_comes_whole(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(f"{site}/a.png?size=1", lambda _: True) == CONTENT
    monkeypatch.setattr(addresses, "MAX_IMAGE", len(CONTENT) - 1)
    with pytest.raises(CusaError, match="bytes at image_url"):
        fetched(f"{site}/a.png?size=1", lambda _: True)


@pytest.mark.parametrize(("path", "found"), [("/moved", 302), ("/absent", 404)], ids=["redirect", "absent"])
def test_nothing_else_than_the_thing_itself_is_taken(site: str, path: str, found: int) -> None:
    with pytest.raises(CusaError) as refused:
        fetched(site + path, lambda _: True)
    assert refused.value.found == found


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1/x.png", id="this-machine"),
        pytest.param("http://localhost:8000/", id="by-name"),
        pytest.param("http://[::1]/", id="this-machine-6"),
        pytest.param("http://10.0.0.1/", id="own-network"),
        pytest.param("http://169.254.169.254/latest/meta-data", id="metadata"),
        pytest.param("http://[::ffff:127.0.0.1]/", id="mapped"),
        pytest.param("http://[64:ff9b::a9fe:a9fe]/", id="translated"),
        pytest.param("http://[2002:7f00:1::]/", id="six-to-four"),
        pytest.param("http://[::7f00:1]/", id="compatible"),
        pytest.param("file:///etc/hostname", id="file"),
        pytest.param("ftp://example.org/x.png", id="ftp"),
        pytest.param("http://", id="no-host"),
        pytest.param("http://127.0.0.1:99999/", id="no-port"),
        pytest.param("//x/y", id="no-scheme"),
    ],
)
def test_addresses_that_are_not_public_are_not_opened(url: str) -> None:
    with pytest.raises(CusaError):
        fetched(url)
