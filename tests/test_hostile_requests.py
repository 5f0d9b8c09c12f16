"""Requests of those who mean harm, or are broken: each has its answer, none harms, and the server goes on."""

from __future__ import annotations

import base64
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import content
from hostile_images import encoded, gif_claiming, jpeg_claiming, noise, webp_claiming, with_chunk
from served import Client, Reply, serving
from starlette.exceptions import HTTPException

from pipeline.serve import guards, server
from pipeline.serve.json_api import checked
from pipeline.serve.queries import MAX_BODY, MAX_VALUES, SearchRequest
from stores import Store


@pytest.fixture(scope="module")
def client(searched_store: Store) -> Iterator[Client]:
    beside = sorted(searched_store.root.parent.iterdir())
    before = content(searched_store.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "BODY_SECONDS", 3.0)
        patch.setattr(server, "HEAD_SECONDS", 1.0)
        with serving(searched_store.root) as client:
            yield client
    assert content(searched_store.root) == before, "nothing in the store changes"
    assert sorted(searched_store.root.parent.iterdir()) == beside, "nor beside it"


def raw(client: Client, data: bytes, wait: float = 10.0) -> bytes:
    """Send bytes as they are; return what comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=wait) as connection:
        connection.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
            answer += more
        return answer


def get(path: str, **headers: str) -> Callable[[Client], int]:
    return lambda client: client.ask("GET", path, **headers).status


def post(path: str, body: bytes | object, **headers: str) -> Callable[[Client], int]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda client: client.ask("POST", path, data, **headers).status


def search(**asked: object) -> Callable[[Client], int]:
    return post("/api/search", asked)


def sent(head: str, body: bytes = b"") -> Callable[[Client], int]:
    """Send a request by hand, and return the status that comes."""
    return lambda client: int(raw(client, head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body).split()[1])


def image(data: bytes) -> Callable[[Client], int]:
    return search(image=base64.b64encode(data).decode())


def chunked_flood(client: Client) -> int:
    """A body without a length that does not end."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        try:
            for _ in range(MAX_BODY // 0x100000 + 20):
                connection.sendall(chunk)
        except OSError:
            pass  # the server has closed
        return int(connection.recv(4096).split()[1])


def slow_body(client: Client) -> int:
    head = "POST /api/search HTTP/1.1\nHost: localhost\nContent-Length: 100"
    return sent(head, b"{")(client)


def slow_head(client: Client) -> int:
    return 0 if raw(client, b"GET / HTTP/1.1\r\nHost: local") == b"" else 1


def gone(client: Client) -> int:
    """Ask, and leave before the answer."""
    body = json.dumps({"text": "a circle"}).encode()
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    return 0


ZEROS = b"C\0\0" + zlib.compress(bytes(10**8), 9)
FORM = {"Content_Type": "application/x-www-form-urlencoded"}
SCRIPT = b"<script>alert(1)</script>"
KINDS: dict[str, tuple[Callable[[Client], int], int]] = {
    "length-too-large": (sent(f"POST /api/search HTTP/1.1\nHost: localhost\nContent-Length: {MAX_BODY + 1}"), 413),
    "length-absurd": (sent(f"POST /api/search HTTP/1.1\nHost: localhost\nContent-Length: {10**18}"), 413),
    "length-negative": (sent("POST /api/search HTTP/1.1\nHost: localhost\nContent-Length: -1"), 400),
    "length-twice": (sent("POST / HTTP/1.1\nHost: localhost\nContent-Length: 1\nContent-Length: 2"), 400),
    "flood": (chunked_flood, 413),
    "slow-body": (slow_body, 408),
    "slow-head": (slow_head, 0),
    "no-http": (lambda client: int(raw(client, b"\x16\x03\x01\x02\x00\x01\r\n\r\n").split()[1]), 400),
    "head-too-large": (lambda client: int(raw(client, b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000).split()[1]), 400),
    "goes-away": (gone, 0),
    "host-of-a-stranger": (get("/", Host="evil.example"), 421),
    "host-rebound": (get("/api/store", Host="evil.example:8000"), 421),
    "host-twisted": (get("/", Host="localhost@evil.example"), 421),
    "no-host": (sent("GET / HTTP/1.0"), 421),
    "origin-of-a-stranger": (post("/api/search", {"text": "a"}, Origin="https://evil.example"), 403),
    "origin-of-no-address": (post("/", b"q=a", Origin="http://[x"), 403),
    "origin-null": (post("/", b"q=a", Origin="null"), 403),
    "cross-site": (post("/lists/missing/train/mark", b"number=1&mark=right", Sec_Fetch_Site="cross-site"), 403),
    "picture-of-another-site": (get("/thumbnail/1", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"), 403),
    "link-of-another-site": (get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"), 200),
    "method": (lambda client: client.ask("DELETE", "/image/1").status, 405),
    "path-up": (get("/image/../../manifest.json"), 404),
    "path-up-encoded": (get("/image/..%2f..%2f..%2fetc%2fpasswd"), 404),
    "path-nul": (get("/image/1%00.png"), 404),
    "row-endless": (get(f"/thumbnail/{'9' * 5000}"), 404),
    "row-too-large": (get("/sample/80"), 404),
    "row-in-other-digits": (get("/image/%D9%A1"), 404),
    "row-negative": (search(row=-1), 400),
    "row-past-the-end": (search(row=10**12), 400),
    "row-past-all-numbers": (search(row=10**30), 400),
    "text-nul": (search(text="a\0b"), 400),
    "text-half-a-pair": (post("/api/search", b'{"text": "\\ud800"}'), 400),
    "text-too-long": (search(text="a" * 10_001), 400),
    "text-of-nothing": (search(text=" \u200b "), 400),
    "not-utf-8": (post("/api/search", b'{"text": "\xff"}'), 400),
    "no-json": (post("/api/search", b"text=a"), 400),
    "nested": (post("/api/search", b"[" * 100_000), 400),
    "nested-in-what-is-known": (post("/api/search", b'{"text": %s1%s}' % (b"[" * 900, b"]" * 900)), 400),
    "wrong-types": (search(text=["a"], count="many"), 400),
    "unknown-key": (search(text="a", path="/etc/passwd"), 400),
    "unknown-keys-by-the-million": (post("/api/search", b"{%s}" % b",".join(b'"%d":0' % n for n in range(10**6))), 400),
    "embedding-of-texts": (post("/api/search", b'{"embedding": [%s]}' % b",".join([b'"a"'] * 10**6)), 400),
    "two-queries": (search(text="a", row=1), 400),
    "count-endless": (search(text="a", count=10**9), 400),
    "embedding-nan": (post("/api/search", b'{"embedding": [NaN]}'), 400),
    "embedding-zero": (search(embedding=[0.0] * 128), 400),
    "embedding-of-another-size": (search(embedding=[1.0, 2.0]), 400),
    "split-a-path": (search(text="a", split="../../etc"), 400),
    "model-to-import": (search(text="a", model="os:system"), 400),
    "image-bomb-jpeg": (image(jpeg_claiming(65_000, 65_000)), 400),
    "image-bomb-gif": (image(gif_claiming((16, 16), (65_535, 65_535))), 400),
    "image-bomb-webp": (image(webp_claiming(16_383, 16_383)), 400),
    "image-bomb-text": (image(with_chunk(encoded(noise(), "PNG"), b"zTXt", ZEROS)), 400),
    "image-too-thin": (image(encoded(noise(5_000, 2), "PNG")), 400),
    "image-cut-off": (lambda client: image(client.ask("GET", "/image/1").body[:200])(client), 400),
    "image-a-script": (image(SCRIPT), 400),
    "image-no-base64": (search(image="%%%"), 400),
    "image-by-form-a-script": (lambda client: client.form(SCRIPT).status, 400),
    "form-without-boundary": (post("/", b"x", Content_Type="multipart/form-data"), 400),
    "form-of-many-fields": (lambda client: client.form(b"", **{f"f{n}": "x" for n in range(50)}).status, 400),
    "form-a-weight": (get("/?q=a&weight=1e9"), 400),
    "form-a-weight-of-zeros": (get(f"/?q=a&weight={'0' * 5000}"), 400),
    "list-a-path": (get("/lists/missing/..%2f..%2fetc"), 404),
    "list-unknown": (get("/lists/secrets/train"), 404),
    "mark-of-no-list": (post("/lists/missing/train/mark", b"number=1&caption_row=1&image_row=1", **FORM), 404),
    "mark-of-nothing-seen": (post("/lists/missing/train/mark", b"number=1&mark=right", **FORM), 400),
    "knn-an-address": (post("/knn-service", {"image_url": "http://127.0.0.1/", "num_images": 1}), 400),
    "knn-a-file": (post("/knn-service", {"image": "/etc/passwd", "num_images": 1}), 400),
    "knn-nothing": (post("/knn-service", {}), 400),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_requests_are_answered_and_the_server_goes_on(client: Client, kind: str) -> None:
    request, expected = KINDS[kind]
    assert request(client) == expected
    assert client.search(text="a red circle", count=1).status == 200


def test_millions_of_values_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(HTTPException) as caught:
        checked(SearchRequest, b"[," * MAX_VALUES)
    assert "more than 131,072 values" in caught.value.detail


def test_nothing_that_is_asked_becomes_a_page_s_markup(client: Client) -> None:
    page = client.page(q='"><script>alert(1)</script>', label="<b>", split="train")
    assert "<script>alert" not in page.text
    assert "<b>" not in page.text
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert "access-control-allow-origin" not in client.ask("GET", "/api/store", Origin="https://evil.example").headers


def test_two_hundred_at_once_have_an_answer_each(client: Client) -> None:
    def ask(number: int) -> Reply:
        return client.search(text=f"a red circle and {number} blue squares", count=3)

    with ThreadPoolExecutor(200) as threads:
        replies = list(threads.map(ask, range(200)))
    assert {reply.status for reply in replies} == {200}
    alone = [client.search(text=f"a red circle and {number} blue squares", count=3).json for number in (0, 199)]
    for one, reply in zip(alone, (replies[0], replies[199]), strict=True):
        assert [hit["row"] for hit in reply.json["results"]] == [hit["row"] for hit in one["results"]]
