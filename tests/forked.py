"""Commands in processes of their own, forked from one that has their libraries loaded: a tenth of a second, not five.

What a launcher or a console script adds is proven by the tests that start those (test_processes, test_commands).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO

CHECKOUT = Path(__file__).resolve().parents[1]


class Running:
    """Processes of one command, and what they print; where one fails, the others are ended, as torchrun does."""

    def __init__(self, processes: Sequence[ForkServerProcess], output: IO[str], errors: IO[str]) -> None:
        self._processes, self._output, self._errors = processes, output, errors
        self.pid = processes[0].pid

    def poll(self) -> int | None:
        """The exit code (-9 after SIGKILL): the first that is not zero; None while any process runs."""
        codes = [process.exitcode for process in self._processes]
        if None not in codes:
            return next(filter(None, codes), 0)
        if any(codes):
            self.send_signal(signal.SIGTERM)
        return None

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        for process in self._processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; what was printed to standard output and error.

        Raises:
            TimeoutError: a process still runs after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.wait([process.sentinel for process in self._processes if process.is_alive()], left)
        with self._output, self._errors:
            return self._output.read(), self._errors.read()


def start(
    program: str | Path,
    *arguments: str,
    processes: int = 1,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start `main` of a module, or a script, in so many processes that know each other as torchrun's do."""
    output, errors = (tempfile.NamedTemporaryFile("r") for _ in range(2))  # noqa: SIM115
    variables = {**os.environ, **(environment or {})}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places: list[dict[str, str]] = [{}]
    if processes > 1:
        together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        places = [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = []
    for place in places:
        given = (program, arguments, variables | place, cwd or Path.cwd(), (output.name, errors.name))
        started.append(_server().Process(target=_become, args=given))
        started[-1].start()
    return Running(started, output, errors)


@cache
def _server() -> ForkServerContext:
    """Start the process that all others are forked from; it has no threads, and holds no file of a test's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked_libraries"])
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    forkserver.ensure_running()
    if inherited is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = inherited
    return context


def _become(
    program: str | Path, arguments: Sequence[str], variables: Mapping[str, str], cwd: Path, streams: tuple[str, str]
) -> None:
    """Be the command, with a folder, an environment, streams and signals of its own."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the platform's own, for what the command starts
    sys.argv = [str(program), *arguments]
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name="__main__")
    else:
        sys.exit(importlib.import_module(program).main())
