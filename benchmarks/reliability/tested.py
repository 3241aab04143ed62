"""The service under test, as an operator starts it, and what stands around it: each a process of its own."""

import asyncio
import contextlib
import http.client
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import anywhere
from benchmarks.processes import ROOT, BenchmarkFailed, Child, child, free_port, listens, module
from benchmarks.reliability.promise import Outcome
from benchmarks.systems import service

# What a log must not hold, whatever was done to the service.
_FAULTS = ("Traceback", "response_crashed", "session_broke", "service_crashed")


@dataclass(frozen=True)
class Tested:
    """A running service; `engine_port` is its engine's."""

    process: Child
    port: int
    monitoring_port: int
    engine_port: int
    log: Path

    def check(self, outcome: Outcome) -> None:
        """Count the crashes in the log: they are promised not to be."""
        text = self.log.read_text(errors="replace")
        outcome.none(sum(text.count(fault) for fault in _FAULTS), "crashes in the log")

    def pids(self) -> list[int]:
        """Its processes: itself and the workers it started."""
        own = psutil.Process(self.process.pid)
        return [own.pid, *(each.pid for each in own.children(recursive=True))]

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of /metrics, summed over all labels but those given."""
        total, text = 0.0, get(self.monitoring_port, "/metrics").decode()
        for family in text_string_to_metric_families(text):
            total += sum(
                sample.value
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )
        return total


def cores() -> frozenset[int]:
    """All: nothing here measures what a word costs."""
    return anywhere()


@contextlib.contextmanager
def engine(folder: Path, port: int = 0) -> Generator[tuple[Child, int], None, None]:
    """Run the fake engine; gives its process and port."""
    with child("engine", module("fake_engine", "--port", str(port)), folder=folder, cores=cores()) as process:
        yield process, int(process.line())


@contextlib.contextmanager
def service_before(
    engine_port: int,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    provider: str = "ollama",
    workers: int = 1,
) -> Generator[Tested, None, None]:
    """Run the service before an engine; `settings` are variables of its environment."""
    started = service(engine_port, folder, provider=provider)
    monitoring = int(started.variables["LLM_MONITORING_PORT"])
    # No greeting: a service that is late would greet first, and answer start_session with another event then.
    # Its log is read for what went wrong.
    quiet = {"GREETING_DELAY_MS": "60000", "LOG_LEVEL": "WARNING", "MESSAGE_RATE": "0"}
    variables = {**started.variables, **quiet, **(settings or {})}
    command = [*started.command, "--workers", str(workers)]
    with child("service", command, folder=folder, cores=cores(), variables=variables) as process:
        process.wait_until(started.ready)
        yield Tested(process, started.port, monitoring, engine_port, folder / "service.log")


@contextlib.contextmanager
def redis(folder: Path) -> Generator[str, None, None]:
    """Run an empty Redis that keeps nothing; gives its URL.

    Raises:
        BenchmarkFailed: there is none.
    """
    program = os.environ.get("FASTTALK_TEST_REDIS", "")
    if not program:
        command = [str(ROOT / "scripts" / "fetch-redis.sh"), "--find"]
        program = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not program:
        raise BenchmarkFailed("no redis-server was found: scripts/fetch-redis.sh fetches one")
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with child("redis", command, folder=folder, cores=cores()) as process:
        process.wait_until(lambda: listens(port))
        yield f"redis://127.0.0.1:{port}/0"


def get(port: int, path: str) -> bytes:
    """Return the body of a GET on loopback, whatever its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


class Streams(msgspec.Struct):
    """The fake engine's own count: answers that run, and by seed when one was given up."""

    running: int
    given_up: dict[int, float]


async def streams(engine_port: int) -> Streams:
    """Ask the fake engine; what was given up is told once."""
    return msgspec.json.decode(await asyncio.to_thread(get, engine_port, "/bench/streams"), type=Streams, strict=False)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Wait until a condition is true; returns whether it became so in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.02)
            return True
    return False


async def at_once(work: Iterable[Awaitable[Any]]) -> None:
    """Do all of it at once."""

    async def one(each: Awaitable[Any]) -> None:
        await each

    async with asyncio.TaskGroup() as tasks:
        for each in work:
            tasks.create_task(one(each))


def refused_newcomer(port: int) -> tuple[int, str]:
    """Knock with a WebSocket's handshake; return the status, 0 for no answer, and the Retry-After header."""
    head = (
        "GET /ws/llm HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall(head.encode())
        reply = http.client.HTTPResponse(peer)
        reply.begin()
        return reply.status, reply.getheader("Retry-After", "")
    return 0, ""
