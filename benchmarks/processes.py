"""Child processes of a benchmark: pinned to their cores, waited for, always ended."""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
# Seconds until a child that should be there, or gone, is given up.
PATIENCE = 30.0


class BenchmarkFailed(Exception):
    """A run that says nothing: a child ended, did not start, or answered wrongly."""


@dataclass(frozen=True)
class Started:
    """How to start a system: its command and variables, where it will be, and when it is ready."""

    command: list[str]
    port: int
    ready: Callable[[], bool]
    variables: Mapping[str, str] = field(default_factory=dict)


def raise_file_limit() -> None:
    """Allow this process, and those it starts, a thousand sessions with two sockets each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))


def free_ports(count: int) -> list[int]:
    """Return so many ports of loopback that nobody listens on, no two the same."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    return free_ports(1)[0]


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with nothing of the caller's in it but what finding programs takes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


class Child:
    """A running child; what it says on standard output is read line by line."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self._log = log
        self._said = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Wait for the next line it prints."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        # Read by hand: what a buffered reader has already taken, select knows nothing of.
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.fail(f"said nothing for {PATIENCE:g} seconds")
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data:
                self.fail("ended")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def tell(self, line: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def wait_until(self, condition: Callable[[], bool], *, every: float = 0.02) -> None:
        """Wait until it is ready."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            if time.monotonic() > end:
                self.fail(f"was not ready after {PATIENCE:g} seconds")
            time.sleep(every)

    def fail(self, what: str) -> None:
        """Give up, with the last it said.

        Raises:
            BenchmarkFailed: always.
        """
        said = self._log.read_text(errors="replace")[-2000:]
        raise BenchmarkFailed(f"{self.name} {what}\n{said}")


@contextlib.contextmanager
def child(
    name: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    cores: frozenset[int],
    variables: Mapping[str, str] | None = None,
) -> Generator[Child, None, None]:
    """Start a program on the cores given; it is ended, at last by force, when the block is left."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = _start(arguments, folder, environment(**(variables or {})), file)
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(process.pid, cores)
    try:
        yield Child(process, name, log)
    finally:
        _end(process)


def _start(
    arguments: Sequence[str], folder: Path, variables: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # Of its own group: Ctrl-C reaches us alone, and we end the children in order.
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
    with contextlib.suppress(ProcessLookupError):
        # Whatever it started itself, too.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules."""
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


def answers(port: int, path: str = "/") -> bool:
    """Whether a GET on loopback is answered with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as peer:
            peer.settimeout(2)
            peer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in peer.recv(64)
    except OSError:
        return False


def listens(port: int) -> bool:
    """Whether a port of loopback takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
