"""Real engines for tests: the embedded llama.cpp and a local Ollama, each started once a session at most."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from llm_service.devices import LlamaCppOptions
from llm_service.engines.base import Engine
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.model_files import bundled
from tests.processes import found_program, free_port

EMBEDDED_WINDOW = 2048
OLLAMA_MODEL = "smollm2"

_BUILT_OLLAMA = Path("~/.cache/fasttalk/ollama-0.24.0/ollama").expanduser()
_START_SECONDS = 60.0


@dataclass(frozen=True)
class OllamaServer:
    """A running Ollama with one parallel slot that holds one model."""

    url: str
    model: str


@pytest.fixture(scope="session")
def embedded_model_path() -> Path:
    """The bundled SmolLM2."""
    return bundled()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_engine(embedded_model_path: Path) -> AsyncGenerator[LlamaCppEngine, None]:
    """The embedded llama.cpp with SmolLM2, a window of 2048 tokens and two slots.

    It lives on the session's loop: mark the tests that use it `pytest.mark.asyncio(loop_scope="session")`.
    """
    # Half the cores: llama.cpp's threads wait for each other by spinning, and tests share the machine.
    options = LlamaCppOptions(n_gpu_layers=0, main_gpu=0, n_threads=max(1, (os.cpu_count() or 2) // 2))
    engine = await LlamaCppEngine.open(embedded_model_path, options=options, context_window=EMBEDDED_WINDOW, parallel=2)
    yield engine
    await engine.aclose()


@pytest.fixture(scope="session")
def ollama_server(tmp_path_factory: pytest.TempPathFactory, embedded_model_path: Path) -> Iterator[OllamaServer]:
    """A real Ollama on a free loopback port, with SmolLM2 as `smollm2`; nothing of the user's is touched."""
    program = found_program(
        "ollama", brought=_BUILT_OLLAMA, variable="OLLAMA", how="scripts/build-ollama.sh builds one"
    )
    home = tmp_path_factory.mktemp("ollama")
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NUM_PARALLEL": "1",
    }
    log = home / "log"
    with log.open("wb") as output:
        server = subprocess.Popen([program, "serve"], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(f"http://{address}/api/version", server, log)
        modelfile = home / "Modelfile"
        modelfile.write_text(f"FROM {embedded_model_path}\nPARAMETER repeat_penalty 1.1\n")
        subprocess.run(
            [program, "create", OLLAMA_MODEL, "-f", modelfile], env=environment, check=True, capture_output=True
        )
        yield OllamaServer(f"http://{address}", OLLAMA_MODEL)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def borrowed(engine: object) -> Engine:
    """Lend an engine to a service that closes what it is given."""

    class Borrowed:
        def __getattr__(self, name: str) -> object:
            return getattr(engine, name)

        async def aclose(self) -> None:
            """Leave it open for the next test."""

    return cast("Engine", Borrowed())


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    # No proxy of the environment: the address is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail(f"Ollama did not start: {log.read_text(errors='replace')[-2000:]}")
