"""The service as a process of its own, as an operator starts it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parent.parent
# No time that anything is expected to take: after these seconds a test is given up.
PATIENCE = 40.0


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def found_program(name: str, *, brought: Path, variable: str, how: str) -> str:
    """Return a program that tests need: FASTTALK_TEST_`variable`, the one on the PATH, or the one that was `brought`.

    Without one the test is skipped, or fails if FASTTALK_REQUIRE_`variable` is 1; `how` says how to have it.
    """
    named = os.environ.get(f"FASTTALK_TEST_{variable}", "")
    found = named or shutil.which(name) or (str(brought) if brought.is_file() else "")
    if found:
        return found
    reason = f"no {name} was found: {how}, FASTTALK_TEST_{variable} names one"
    if os.environ.get(f"FASTTALK_REQUIRE_{variable}") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true; fails the test when it does not become so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"in {PATIENCE:g} seconds it did not happen: {what}")
        time.sleep(0.02)


def bare_environment(**variables: str) -> dict[str, str]:
    """Return an environment with nothing of the tester's in it but the PATH."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONWARNINGS": "error", **variables}


@dataclass(frozen=True)
class ServiceProcess:
    """A running `main.py websocket`, and where it is found."""

    process: subprocess.Popen[bytes]
    port: int
    monitoring_port: int
    output: Path

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/llm"

    def text(self) -> str:
        """What it wrote to standard output and error."""
        return self.output.read_text(encoding="utf-8")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of this event."""
        found = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def get(self, path: str) -> str | None:
        """Ask the monitoring port; None while it does not answer with 200."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.monitoring_port}{path}", trust_env=False, timeout=5)
        except httpx.TransportError:
            return None
        return answer.text if answer.status_code == 200 else None

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait while it runs; fails the test with what it wrote when it ends or the patience does."""
        until(lambda: condition() or self.process.poll() is not None, f"{what}\n{self.text()}")
        if self.process.poll() is not None and not condition():
            pytest.fail(f"it ended with {self.process.returncode} instead of: {what}\n{self.text()}")

    def wait_until_listening(self, workers: int = 1) -> None:
        """Wait until so many workers take connections."""
        self.wait_until(lambda: len(self.lines("listening")) == workers, "listening")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def service_process(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None, root: Path = ROOT
) -> Generator[ServiceProcess, None, None]:
    """Start `main.py websocket` with the scripted engine in an empty folder, on free ports."""
    port, monitoring_port = free_port(), free_port()
    variables = bare_environment(
        LLM_HOST="127.0.0.1",
        LLM_PORT=str(port),
        LLM_MONITORING_PORT=str(monitoring_port),
        LLM_PROVIDER="scripted",
        LOG_FORMAT="json",
    )
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, root / "main.py", "websocket", *options],
            cwd=folder,
            env=variables | dict(environment or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield ServiceProcess(process, port, monitoring_port, output)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
