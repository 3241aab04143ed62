"""A live service for tests: real sockets on loopback, uvicorn as in production, in the test's own event loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from llm_service.chunk_hook import OnChunk
from llm_service.config import Settings
from llm_service.devices import Device
from llm_service.engines import OpenedEngine
from llm_service.engines.base import Engine
from llm_service.engines.members import MemberEngine
from llm_service.monitoring import create_monitoring_app
from llm_service.server import create_app_for
from llm_service.service import Service
from llm_service.serving import DrainingServer, QuietServer, bind, main_config, monitoring_config

Event = dict[str, Any]

TERMINAL = frozenset({"response_complete", "cancelled", "error"})


@dataclass(frozen=True)
class Live:
    """Where a running service is found."""

    service: Service
    server: DrainingServer
    port: int
    monitoring_port: int

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/llm"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def monitoring_url(self) -> str:
        return f"http://127.0.0.1:{self.monitoring_port}"

    def connect(self, **options: Any) -> connect:
        """Open a WebSocket; no compression and no proxy, as the service has none."""
        return connect(self.ws_url, compression=None, proxy=None, **options)


def opened(
    engine: Engine, *, model: str = "test", context_window: int = 8192, members: tuple[MemberEngine, ...] = ()
) -> OpenedEngine:
    """Wrap an engine as `open_engine` would."""
    return OpenedEngine(
        engine=engine,
        provider=engine.name,
        model=model,
        models=frozenset({model}),
        context_window=context_window,
        device=Device(kind="cpu", index=0, name="test", memory=None),
        reason="a test chose it",
        members=members,
    )


@contextlib.asynccontextmanager
async def live_service(
    engine: Engine,
    environment: Mapping[str, str] | None = None,
    *,
    model: str = "test",
    context_window: int = 8192,
    members: tuple[MemberEngine, ...] = (),
    on_chunk: OnChunk | None = None,
) -> AsyncGenerator[Live, None]:
    """Run the service around an engine until the block is left; it is asked once, so that each fault is seen.

    Clients may speak as often as they want and are not greeted, however slow the machine is, unless the environment
    says otherwise.
    """
    main = bind("127.0.0.1", 0, setting="LLM_PORT")
    monitoring = bind("127.0.0.1", 0, setting="LLM_MONITORING_PORT")
    port, monitoring_port = main.getsockname()[1], monitoring.getsockname()[1]
    defaults = {
        "LLM_PORT": str(port),
        "DRAIN_TIMEOUT": "0.2",
        "ENGINE_RETRIES": "0",
        "MESSAGE_RATE": "0",
        "GREETING_DELAY_MS": "60000",
    }
    settings = Settings.load(defaults | dict(environment or {}))

    async def opener(_: Settings) -> OpenedEngine:
        return opened(engine, model=model, context_window=context_window, members=members)

    async with Service(settings, opener=opener, on_chunk=on_chunk) as service:
        server = DrainingServer(main_config(create_app_for(service), settings), service)
        monitor = QuietServer(monitoring_config(create_monitoring_app(service), settings))
        tasks = [
            asyncio.create_task(server.serve(sockets=[main])),
            asyncio.create_task(monitor.serve(sockets=[monitoring])),
        ]
        try:
            while not (server.started and monitor.started):
                await asyncio.sleep(0.005)
            yield Live(service, server, port, monitoring_port)
        finally:
            server.should_exit = monitor.should_exit = True
            await asyncio.gather(*tasks)


@dataclass
class Answer:
    """What one response said."""

    text: str = ""
    tokens: list[Event] = field(default_factory=list)
    others: list[Event] = field(default_factory=list)
    terminal: Event = field(default_factory=dict)


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    """Send one client event."""
    await socket.send(json.dumps({"type": kind, **fields}))


async def receive(socket: ClientConnection) -> Event:
    """Receive one server event; fails the test after ten seconds of silence."""
    async with asyncio.timeout(10):
        event: Event = json.loads(await socket.recv())
    return event


async def start(socket: ClientConnection, **config: Any) -> Event:
    """Start a session and return the answer."""
    await send(socket, "start_session", config=config)
    return await receive(socket)


async def collect(socket: ClientConnection) -> Answer:
    """Receive one response to its end."""
    answer = Answer()
    while True:
        event = await receive(socket)
        if event["type"] == "token":
            answer.tokens.append(event)
            answer.text += event["data"]
        elif event["type"] in TERMINAL:
            answer.terminal = event
            return answer
        else:
            answer.others.append(event)


async def ask(socket: ClientConnection, text: str, **fields: Any) -> Answer:
    """Send a message and receive its response."""
    await send(socket, "user_message", text=text, **fields)
    return await collect(socket)
