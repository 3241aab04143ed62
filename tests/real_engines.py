"""Real engines for tests: the embedded llama.cpp and a local Ollama, each started once a session at most."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import ollama
import pytest
import pytest_asyncio

from llm_service.devices import LlamaCppOptions
from llm_service.engines.base import Engine
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.model_files import bundled
from tests.processes import ROOT, found_program, free_port

EMBEDDED_WINDOW = 2048
OLLAMA_MODEL = "smollm2"
OPEN_TEMPLATE = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}<|im_start|>{{ .Role }}
{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}<|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- end }}"""

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


@dataclass
class LlamaServer:
    """A running llama-server of the bundled model, which it calls "small"."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def freeze(self) -> None:
        """Stop it where it is: the kernel goes on taking connections for it."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def two_llama_servers(embedded_model_path: Path, tmp_path: Path) -> Iterator[tuple[LlamaServer, LlamaServer]]:
    """Two of them, each a process of its own."""
    servers = []
    log = tmp_path / "llama-server.log"
    with log.open("wb") as output:
        for _ in range(2):
            port = free_port()
            command = [sys.executable, "-m", "tests.llama_server", str(port), str(embedded_model_path)]
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            servers.append(LlamaServer(process, port))
    try:
        for server in servers:
            _wait_until_ready(f"{server.url}/models", server.process, log)
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.kill()


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


@pytest_asyncio.fixture
async def ollama_open(ollama_server: OllamaServer) -> AsyncGenerator[str, None]:
    """The same model with a template that leaves a last message of the assistant open, as most of the library's do."""
    api = ollama.AsyncClient(ollama_server.url, trust_env=False)
    await api.create("open", from_=ollama_server.model, template=OPEN_TEMPLATE)
    yield "open"
    await api.delete("open")
    await api.close()  # type: ignore[no-untyped-call]


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
    pytest.fail(f"it did not start: {log.read_text(errors='replace')[-2000:]}")
