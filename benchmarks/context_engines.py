"""Of `python -m benchmarks context`: who is asked, each with an engine of its own, so that no cache is warm."""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.context_clients import Direct, Proxy, Service, posted
from benchmarks.measure import anywhere
from benchmarks.processes import BenchmarkFailed, answers, child, environment, free_port
from benchmarks.real_engines import OLLAMA_MODEL, Target, _llama_server, _service, embedded_target
from benchmarks.systems import service
from llm_service.engines.model_files import bundled

Engine = Literal["llama.cpp", "ollama"]
Kind = Literal["service", "embedded", "naive", "whole"]

_LOG_SECONDS = 2.0
_SLOT = re.compile(r"loading cache slot.* remaining=(\d+)")


@dataclass(frozen=True)
class Strategy:
    """One row: who is asked, and what decides what the prompt holds."""

    engine: Engine
    kind: Kind
    title: str

    @property
    def name(self) -> str:
        """Its name in the data and in plots."""
        return f"{self.engine}, {self.kind}"


STRATEGIES = (
    Strategy("llama.cpp", "embedded", "the service, llama.cpp inside (`LLM_PROVIDER=llama_cpp`)"),
    Strategy("llama.cpp", "service", "the service before llama.cpp's server (`LLM_PROVIDER=openai`)"),
    Strategy("llama.cpp", "naive", "llama.cpp's server, a naive window by message"),
    Strategy("llama.cpp", "whole", "llama.cpp's server, the whole history"),
    Strategy("ollama", "service", "the service before Ollama (`LLM_PROVIDER=ollama`)"),
    Strategy("ollama", "naive", "Ollama, a naive window by message"),
    Strategy("ollama", "whole", "Ollama, the whole history, which it truncates"),
)


class OllamaLog:
    """What Ollama evaluated, from its debug log: its API does not tell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def evaluated(self, requests: int) -> int:
        """Return the prompt tokens evaluated since the last call, in which so many requests were answered."""
        end = time.monotonic() + _LOG_SECONDS
        while len(found := slots(self._path.read_text(errors="replace")[self._read :])) < requests:
            if time.monotonic() > end:
                raise BenchmarkFailed(f"Ollama's log has {len(found)} cache slots for {requests} requests")
            time.sleep(0.01)
        self._read = len(self._path.read_text(errors="replace"))
        return sum(found)


def slots(log: str) -> list[int]:
    """Return how many tokens each prompt of a log of Ollama's had that were not in its cache."""
    return [int(number) for number in _SLOT.findall(log)]


@dataclass(frozen=True)
class Asked:
    """Who is asked in one strategy. `proxy` is None for the embedded engine: nothing stands between."""

    client: Direct | Service
    target: Target | None = None
    proxy: Proxy | None = None
    log: OllamaLog | None = None


@contextlib.contextmanager
def started(strategy: Strategy, ollama: str, folder: Path, threads: int | None) -> Generator[Asked, None, None]:
    """Start the engine of a strategy, and the service where it is the one asked."""
    with contextlib.ExitStack() as stack:
        if strategy.kind == "embedded":
            embedded = stack.enter_context(embedded_target(folder, threads))
            yield Asked(stack.enter_context(contextlib.closing(Service(embedded.service_port))))
            return
        if strategy.engine == "ollama":
            target = stack.enter_context(_ollama(ollama, folder, threads))
            log = OllamaLog(folder / "ollama" / "ollama.log")
            provider, variables = "ollama", {"LLM_MODEL": OLLAMA_MODEL}
        else:
            port, key = stack.enter_context(_llama_server(folder, threads, anywhere()))
            target, log = Target("openai", port, 0, bundled().stem, key), None
            provider, variables = "openai", {"LLM_MODEL": target.model, "OPENAI_API_KEY": key}
        proxy = stack.enter_context(contextlib.closing(Proxy(target.engine_port)))
        client: Direct | Service = Direct(target, proxy.port)
        if strategy.kind == "service":
            before = service(proxy.port, folder, provider=provider)
            service_port = stack.enter_context(_service(before, folder, threads, variables, anywhere()))
            client = stack.enter_context(contextlib.closing(Service(service_port)))
        yield Asked(client, target, proxy, log)


@contextlib.contextmanager
def _ollama(program: str, folder: Path, threads: int | None) -> Generator[Target, None, None]:
    port, home = free_port(), folder / "ollama"
    variables = {
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NUM_PARALLEL": "1",
        # Its log alone tells what of a prompt was in its cache.
        "OLLAMA_DEBUG": "1",
    }
    with child("ollama", [program, "serve"], folder=home, cores=anywhere(), variables=variables) as process:
        process.wait_until(lambda: answers(port, "/api/version"))
        modelfile = home / "Modelfile"
        modelfile.write_text(f"FROM {bundled()}\nPARAMETER repeat_penalty 1.1\n")
        create = [program, "create", OLLAMA_MODEL, "-f", str(modelfile)]
        made = subprocess.run(create, env=environment(**variables), capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchmarkFailed(f"ollama create failed: {made.stderr[-1000:]}")
        yield Target("ollama", port, 0, OLLAMA_MODEL, threads=threads)


@contextlib.contextmanager
def tokenizer(folder: Path) -> Generator[Callable[[Sequence[str]], list[int]], None, None]:
    """The model's own count of the tokens of texts, templates included."""
    with _llama_server(folder, None, anywhere()) as (port, key):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

        def count(texts: Sequence[str]) -> list[int]:
            bodies = ({"content": text, "add_special": False, "parse_special": True} for text in texts)
            return [len(posted(port, "/tokenize", body, headers)["tokens"]) for body in bodies]

        yield count
