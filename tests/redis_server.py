"""A real Redis for tests, started once a session at most."""

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import found_program, free_port

_FETCHED = Path("~/.cache/fasttalk/redis/redis-server").expanduser()
_START_SECONDS = 20.0


class RedisServer:
    """A Redis on a free loopback port that writes nothing to the disk."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.port = free_port()
        self._command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, cwd=self._folder.name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(1) in (b"+", b"-"):  # the latter of one that wants a password first
                        return
            except OSError:
                time.sleep(0.01)
        pytest.fail("Redis did not start")

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it; a second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and take its folder away."""
        self.stop()
        self._folder.cleanup()


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The redis-server to test with."""
    return found_program("redis-server", brought=_FETCHED, variable="REDIS", how="scripts/fetch-redis.sh fetches one")


@pytest.fixture(scope="session")
def redis_server(redis_program: str) -> Iterator[RedisServer]:
    """A Redis that the session's tests share: each takes a prefix of its own and lets it run."""
    server = RedisServer(redis_program)
    yield server
    server.close()


@pytest.fixture
def own_redis(redis_program: str) -> Iterator[RedisServer]:
    """A Redis for one test, to be stopped and frozen."""
    server = RedisServer(redis_program)
    yield server
    server.close()
