"""What is measured: the service as it is started by an operator, the floor, the peers, and the engine alone."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.clients import Kind
from benchmarks.processes import ROOT, Started, answers, free_port, free_ports, listens, module

MAX_SESSIONS = 2000


@dataclass(frozen=True)
class System:
    """One row of the table. `start` gets the engine's port and an empty folder; None: the engine itself.

    `loads` are the names of the loads it can take. `once`: measured in the first round alone, to save time.
    """

    name: str
    title: str
    kind: Kind
    path: str
    loads: tuple[str, ...]
    start: Callable[[int, Path], Started] | None
    missing: Callable[[], str] = lambda: ""
    once: bool = False


def service(engine_port: int, _: Path, *, provider: str = "ollama", log_level: str = "INFO") -> Started:
    """`python main.py websocket`; the engine, the ports and how much may be asked at once are all that is not default.

    Limits are on, as far away as they may be set.
    """
    port, monitoring = free_ports(2)
    variables = {
        "LLM_PROVIDER": provider,
        "LLM_MODEL": "bench",
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{engine_port}",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{engine_port}/v1",
        "LLM_HOST": "127.0.0.1",
        "LLM_PORT": str(port),
        "LLM_MONITORING_PORT": str(monitoring),
        "LLM_MAX_CONNECTIONS": str(MAX_SESSIONS),
        "MESSAGE_RATE": "1000000",
        "MESSAGE_BURST": "1000000",
        "MAX_RUNNING": str(MAX_SESSIONS),
        "LOG_LEVEL": log_level,
    }
    command = [sys.executable, str(ROOT / "main.py"), "websocket"]
    return Started(command, port, lambda: answers(monitoring, "/health/ready") and listens(port), variables)


def _relay(name: str) -> Callable[[int, Path], Started]:
    def start(engine_port: int, _: Path) -> Started:
        port = free_port()
        command = module(name, "--port", str(port), "--engine-port", str(engine_port))
        return Started(command, port, lambda: listens(port))

    return start


_ALL = ("1", "10", "100", "100 slow", "100 fast", "1000", "saturated")

SYSTEMS = (
    System("service", "the service", "websocket", "/ws/llm", _ALL, service),
    System("floor", "floor: picows, raw protocol, msgspec", "websocket", "/ws/llm", _ALL, _relay("floor")),
    System("engine", "the engine alone (HTTP SSE)", "sse", "/v1/chat/completions", _ALL, None),
    System(
        "service-warning",
        "the service, LOG_LEVEL=WARNING",
        "websocket",
        "/ws/llm",
        ("100",),
        lambda port, folder: service(port, folder, log_level="WARNING"),
    ),
    System(
        "service-openai",
        "the service, OpenAI's protocol",
        "websocket",
        "/ws/llm",
        ("100",),
        lambda port, folder: service(port, folder, provider="openai"),
    ),
    System(
        "naive",
        "FastAPI, websockets, httpx aiter_lines, send_json",
        "websocket",
        "/ws/llm",
        ("1", "10", "100", "100 slow", "saturated"),
        _relay("naive"),
        once=True,
    ),
    System(
        "litellm",
        f"LiteLLM proxy {peers.LITELLM} (HTTP SSE)",
        "sse",
        "/v1/chat/completions",
        ("1", "10", "saturated"),
        peers.start_litellm,
        peers.missing_litellm,
        once=True,
    ),
)


def chosen(names: str) -> list[System]:
    """Return the systems named, or all.

    Raises:
        ValueError: there is no such system.
    """
    if not names:
        return list(SYSTEMS)
    known = {system.name: system for system in SYSTEMS}
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such system: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]
