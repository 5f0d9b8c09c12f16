"""cusa-store serve under load: 1, 8 and 32 clients on loopback, and how soon it answers after it is started."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.commands import script
from benchmarks.measure import Result

PICTURES, REQUESTS, CLIENTS = 600, 320, (1, 8, 32)
START = 3.0
LOADING = (
    "from stores import Store; from pipeline.inspection.teachers import cross_modal_slugs, load_stored\n"
    "store = Store.open('store'); towers = cross_modal_slugs(store.manifest)\n"
    "[load_stored(store, slug) for slug in towers.values()]\n"
    "[store.index(slug, split) for slug in towers.values() for split in store.manifest.splits]"
)
"""What a server must load in any case: both towers, and the indices."""


def benchmark() -> list[Result]:
    """Measure a server in a process of its own, of the embedded student over a small store."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _prepare(place)
        loading = _seconds([sys.executable, "-c", LOADING], place)
        with _serving(place) as (port, started):
            times = {clients: _asked(port, clients) for clients in CLIENTS}
    alone = float(np.median(times[1]))
    results = [
        Result(
            name="start cusa-store serve until its first answer, against loading its model and indices",
            ours=started,
            yardstick=loading,
            unit="s",
            ratio=started / loading,
            bound=f"≤ {START:.0f} s more",
            kept=started <= loading + START,
        )
    ]
    for clients, found in times.items():
        median, last = (float(np.quantile(found, part)) for part in (0.5, 0.99))
        results.append(
            Result(
                name=f"search by text, {clients} clients at once: 99th percentile (median {1000 * median:.1f} ms), "
                f"against one client's median",
                ours=1000 * last,
                yardstick=1000 * alone,
                unit="ms",
                ratio=last / alone,
                bound=f"≤ {max(2 * clients, 4)}",
                # Twice a queue of all clients, who share the cores; one client may meet a neighbour's work.
                kept=last <= max(2 * clients, 4) * alone,
            )
        )
    return results


def _prepare(place: Path) -> None:
    sizes = f"-Sdata.scenes={{train: {PICTURES}, val: 40, test: 40}}"
    for command in (
        [script("cusa-extract"), "--store", "store", sizes],
        [script("cusa-train"), "--store", "store", "--run", "run", "-Strain.epochs=1", "-Strain.compare=false"],
        [script("cusa-extract"), "--store", "store", "--teacher", "run:run"],
    ):
        subprocess.run(command, cwd=place, check=True, capture_output=True)


def _seconds(command: list[str], place: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    return time.perf_counter() - started


@contextmanager
def _serving(place: Path) -> Iterator[tuple[int, float]]:
    """Yield a server's port, and the seconds until its first answer."""
    started = time.perf_counter()
    command = [script("cusa-store"), "serve", "store", "--port", "0"]
    server = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(found for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)))
        port = int(address[1])
        _ask(http.client.HTTPConnection("127.0.0.1", port), "a red circle")
        yield port, time.perf_counter() - started
    finally:
        server.kill()
        server.wait()


def _asked(port: int, clients: int) -> list[float]:
    """Return how long each of `REQUESTS` took; every text is another one."""

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        found = []
        for place in range(number, REQUESTS, clients):
            started = time.perf_counter()
            _ask(connection, f"a red circle beside {place} small blue squares")
            found.append(time.perf_counter() - started)
        return found

    with ThreadPoolExecutor(clients) as threads:
        return [seconds for found in threads.map(client, range(clients)) for seconds in found]


def _ask(connection: http.client.HTTPConnection, text: str) -> None:
    connection.request("POST", "/api/search", json.dumps({"text": text, "count": 24}))
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the server answered {answer.status}: {body[:200]!r}")


if __name__ == "__main__":
    for result in benchmark():
        print(result)
