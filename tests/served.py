"""A real server of a store, in a thread of the test's process, and requests to it as any client makes them."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.inspection.reranker import Reranker
from pipeline.serve.answering import Answering
from pipeline.serve.server import listen, server


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Client:
    """Asks the server on a port of loopback."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def page(self, **asked: object) -> Reply:
        return self.ask("GET", "/?" + urllib.parse.urlencode(asked))

    def search(self, **asked: object) -> Reply:
        return self.ask("POST", "/api/search", json.dumps(asked).encode())

    def form(self, image: bytes, **fields: str) -> Reply:
        """Send an image as the page's form does."""
        mark = "----of-the-test"
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
        body = b"".join([*parts, head, image, f"\r\n--{mark}--\r\n".encode()])
        return self.ask("POST", "/", body, Content_Type=f"multipart/form-data; boundary={mark}")


@contextmanager
def serving(path: Path, teacher: str | None = None, reranker: Reranker | None = None) -> Iterator[Client]:
    """Serve a store on a free port of loopback."""
    listening = listen("127.0.0.1", 0)
    running = server(Answering(path, teacher, reranker=reranker), "127.0.0.1")
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the server starts"
        time.sleep(0.01)
    try:
        yield Client(listening.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server ends"
