"""Real engines for `benchmarks real`, each in a process of its own, and how the service is started before them.

Run as a module it is llama.cpp's server with the bundled model, with the very parameters of the service's own.
"""

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import anywhere, cores
from benchmarks.processes import ROOT, BenchmarkFailed, Started, answers, child, environment, free_port, module
from benchmarks.systems import service
from llm_service.devices import detect, llama_cpp_options, threads
from llm_service.engines.llama_cpp import (
    _configure_device,
    _configure_model,
    _configure_server,
    _import_xllamacpp,
    _start,
)
from llm_service.engines.model_files import bundled
from llm_service.errors import EngineUnavailable

WINDOW = 2048
PARALLEL = 2
SYSTEM_PROMPT = "You are a helpful assistant."
OLLAMA_MODEL = "smollm2"
OLLAMA_ADVICE = "no Ollama was found: scripts/build-ollama.sh builds one, --ollama names one"
# What a request says of sampling, to the service and to an engine alike. 0: the likeliest token, so that the
# same prompt gives the same answer.
TEMPERATURE, TOP_P, TOP_K, SEED = 0.0, 0.9, 40, 1
_KEY = "BENCHMARKS_LLAMA_CPP_KEY"

Speech = Literal["ollama", "openai"]


@dataclass(frozen=True)
class Target:
    """One running engine and a service before it: where each is and how the engine is asked directly."""

    speech: Speech
    engine_port: int
    service_port: int
    model: str
    key: str = ""
    extra: Mapping[str, object] | None = None
    threads: int | None = None
    cores: frozenset[int] = frozenset()  # for whoever asks; empty: any

    @property
    def path(self) -> str:
        """Where the engine is asked."""
        return "/api/chat" if self.speech == "ollama" else "/v1/chat/completions"

    def body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Return the request that the service sends for this prompt; a test compares it with the service's."""
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}]
        chat: dict[str, Any] = {"model": self.model, "messages": messages, "stream": True}
        if self.speech == "ollama":
            size = {"num_ctx": WINDOW, "num_predict": max_tokens}
            sampling = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": TOP_K}
            device = {} if self.threads is None else {"num_thread": self.threads}
            options = {**device, **size, **sampling, "stop": [], "seed": SEED}
            return {**chat, "truncate": False, "shift": False, "keep_alive": "5m", "options": options}
        sampling = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": max_tokens}
        usage = {"stream_options": {"include_usage": True}}
        return {**chat, **usage, **sampling, **(self.extra or {}), "seed": SEED, "top_k": TOP_K}


def session_config(max_tokens: int) -> dict[str, Any]:
    """Return what a session asks of the service, so that it sends `Target.body`."""
    sampling = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": TOP_K, "seed": SEED}
    return {"system_prompt": SYSTEM_PROMPT, "max_tokens": max_tokens, **sampling}


def find_ollama(named: Path | None) -> str:
    """Return the program: the one named, the PATH's, or the one that was built; "" if there is none.

    Raises:
        ValueError: the one named is not there.
    """
    if named is not None:
        if not named.is_file():
            raise ValueError(f"there is no program {named}")
        return str(named.resolve())
    command = [str(ROOT / "scripts" / "build-ollama.sh"), "--find"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def versions(ollama: str) -> dict[str, str]:
    """Return what was measured, for whoever reads the numbers."""
    told = {"model": bundled().stem, "xllamacpp": metadata.version("xllamacpp")}
    if ollama:
        said = subprocess.run([ollama, "--version"], capture_output=True, text=True, check=False).stdout.split()
        # One that was built from its Go module calls itself 0.0.0; its folder tells.
        told["ollama"] = f"{said[-1] if said else 'unknown'} ({ollama.replace(str(Path.home()), '~')})"
    return told


@contextlib.contextmanager
def ollama_target(program: str, folder: Path, engine_threads: int | None = None) -> Generator[Target, None, None]:
    """A real Ollama that holds the bundled model, and the service before it; nothing of the user's is touched."""
    port, home = free_port(), folder / "ollama"
    variables = {
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NUM_PARALLEL": "1",
    }
    engine_cores, rest = shared_out(engine_threads)
    with child("ollama", [program, "serve"], folder=home, cores=engine_cores, variables=variables) as process:
        process.wait_until(lambda: answers(port, "/api/version"))
        modelfile = home / "Modelfile"
        modelfile.write_text(f"FROM {bundled()}\nPARAMETER repeat_penalty 1.1\n")
        create = [program, "create", OLLAMA_MODEL, "-f", str(modelfile)]
        made = subprocess.run(create, env=environment(**variables), capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchmarkFailed(f"ollama create failed: {made.stderr[-1000:]}")
        started = service(port, folder)
        with _service(started, folder, engine_threads, {"LLM_MODEL": OLLAMA_MODEL}, rest) as service_port:
            yield Target("ollama", port, service_port, OLLAMA_MODEL, threads=engine_threads, cores=rest)


@contextlib.contextmanager
def llama_server_target(folder: Path, engine_threads: int | None = None) -> Generator[Target, None, None]:
    """llama.cpp's server in a process of its own, and the service before it, which speaks OpenAI's protocol."""
    engine_cores, rest = shared_out(engine_threads)
    with _llama_server(folder, engine_threads, engine_cores) as (port, key):
        model = bundled().stem
        started = service(port, folder, provider="openai")
        variables = {"LLM_MODEL": model, "OPENAI_API_KEY": key}
        with _service(started, folder, engine_threads, variables, rest) as service_port:
            yield Target("openai", port, service_port, model, key, cores=rest)


@contextlib.contextmanager
def embedded_target(folder: Path, engine_threads: int | None = None) -> Generator[Target, None, None]:
    """The service with llama.cpp inside, beside the same llama.cpp in a process of its own; both on any core."""
    with _llama_server(folder, engine_threads, anywhere()) as (port, key):
        started = service(port, folder, provider="llama_cpp")
        # Empty counts as not given: the model it comes with.
        variables = {"LLM_MODEL": "", "LLAMA_CPP_PARALLEL": str(PARALLEL)}
        with _service(started, folder, engine_threads, variables, anywhere()) as service_port:
            yield Target("openai", port, service_port, bundled().stem, key, {"return_progress": True})


@contextlib.contextmanager
def _service(
    started: Started, folder: Path, engine_threads: int | None, variables: Mapping[str, str], cores: frozenset[int]
) -> Generator[int, None, None]:
    settings = {**started.variables, "DEFAULT_CONTEXT_WINDOW": str(WINDOW), **variables}
    if engine_threads is not None:
        settings["NUM_THREADS"] = str(engine_threads)
    with child("service", started.command, folder=folder / "service", cores=cores, variables=settings) as process:
        process.wait_until(started.ready)
        yield started.port


@contextlib.contextmanager
def _llama_server(
    folder: Path, engine_threads: int | None, cores: frozenset[int]
) -> Generator[tuple[int, str], None, None]:
    port, key = free_port(), secrets.token_urlsafe(32)
    command = module("real_engines", "--port", str(port))
    if engine_threads is not None:
        command += ["--threads", str(engine_threads)]
    # Started once before, since its absence is said best by the one who knows what to install.
    try:
        _import_xllamacpp()
    except EngineUnavailable as error:
        raise BenchmarkFailed(error.message) from None
    with child("llama-server", command, folder=folder / "llama", cores=cores, variables={_KEY: key}) as process:
        process.wait_until(lambda: answers(port, "/health"))
        yield port, key


def shared_out(engine_threads: int | None) -> tuple[frozenset[int], frozenset[int]]:
    """Return the cores of an engine, and those of the service and of whoever asks.

    Left alone the engine takes every core, as it would anywhere, and the service has to get its share. Of an engine
    whose threads are so few that others are left, each has a core of its own: else whatever wakes for a token, the
    service or who asks, runs now and then where the engine computes.
    """
    if engine_threads is None:
        return anywhere(), anywhere()
    where = cores(engine_threads)
    return where.tested, where.rest


def main() -> None:
    """Serve the bundled model until standard input ends, as it does with whoever started this."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_engines", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, help="default: one for each physical core, as for the service")
    options = parser.parse_args()
    xllamacpp, path = _import_xllamacpp(), bundled()
    params = xllamacpp.CommonParams()
    _configure_model(params, path, path.stem, WINDOW, PARALLEL)
    _configure_device(params, llama_cpp_options(detect("auto", 0, None), threads(options.threads)))
    _configure_server(params, os.environ[_KEY])
    params.port = options.port
    # Kept by its name: a server that nobody holds is destroyed.
    server = _start(xllamacpp, params, path)
    sys.stdin.buffer.read()
    del server


if __name__ == "__main__":
    main()
