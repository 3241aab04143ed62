"""Running under uvicorn: addresses, the drain, and answers while it is busy."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llm_service import log
from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import ConfigurationError
from llm_service.service import Service
from llm_service.serving import bind, serve
from tests.live import Live, collect, live_service, opened, receive, send, start


def test_a_taken_port_is_told() -> None:
    """The error names the setting, the address and what to do."""
    with bind("127.0.0.1", 0, setting="LLM_PORT") as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"LLM_PORT={port}: cannot listen .* choose another"):
            bind("127.0.0.1", port, setting="LLM_PORT")


def test_an_unknown_host_is_told() -> None:
    """A host that does not exist is an error of configuration, not a traceback."""
    with pytest.raises(ConfigurationError, match=r"LLM_HOST=no such host: cannot listen .* name an address"):
        bind("no such host", 8000, setting="LLM_PORT")


async def test_running_responses_finish_at_a_signal() -> None:
    """At the signal readiness goes, newcomers are told when to come again, idle sessions are closed with 3001, and
    a running response is not cut."""
    engine = ScriptedEngine(lambda _: ["word "] * 40, tokens_per_second=100, models=())
    async with live_service(engine, {"DRAIN_TIMEOUT": "5"}) as live, live.connect() as busy, live.connect() as idle:
        await start(busy)
        await start(idle)
        await send(busy, "user_message", text="go")
        await receive(busy)
        live.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(ConnectionClosed) as closed:
            await idle.recv()
        assert 3001 == closed.value.rcvd.code  # type: ignore[union-attr]
        assert not live.service.ready
        with pytest.raises(InvalidStatus) as refused:
            await live.connect()
        assert (503, "5") == (refused.value.response.status_code, refused.value.response.headers["Retry-After"])
        answer = await collect(busy)
        assert ("response_complete", "word " * 39) == (answer.terminal["type"], answer.text)
        with pytest.raises(ConnectionClosed) as closed:
            await busy.recv()
        assert 3001 == closed.value.rcvd.code  # type: ignore[union-attr]


async def test_log_lines_are_gathered_while_it_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From before it says that it listens until the drain is over; what was said by then is written."""
    held: list[str] = []

    @contextlib.contextmanager
    def gathering() -> Iterator[None]:
        with gathered():
            yield
            held.append(capsys.readouterr().err)

    def listening() -> None:
        signal.raise_signal(signal.SIGTERM)

    async def opener(_: Settings) -> OpenedEngine:
        return opened(ScriptedEngine(models=()))

    gathered = log.gathering
    monkeypatch.setattr(log, "gathering", gathering)
    log.configure("INFO", "console")
    main = bind("127.0.0.1", 0, setting="LLM_PORT")
    try:
        async with asyncio.timeout(5):
            await serve(Service(Settings.load({}), opener=opener), main=main, monitoring=None, listening=listening)
    finally:
        log.configure("WARNING", "console")
    written = capsys.readouterr().err
    assert [""] == held
    assert written.index("listening") < written.index("drained")


async def test_not_ready_from_the_signal_on() -> None:
    """Readiness goes with the signal itself, not when uvicorn looks next whether it should exit."""
    async with live_service(ScriptedEngine(models=())) as live:
        live.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0)
        assert ("draining", False) == (live.service.state, live.service.ready)


async def test_a_drain_starts_nothing_new() -> None:
    """What waits, and what still comes, is refused while the running response finishes."""
    engine = ScriptedEngine(lambda _: ["word "] * 40, tokens_per_second=100, models=())
    async with live_service(engine, {"DRAIN_TIMEOUT": "5"}) as live, live.connect() as socket:
        await start(socket, on_busy="queue")
        for name in ("running", "waiting"):
            await send(socket, "user_message", text="go", id=name)
        await receive(socket)
        live.server.handle_exit(signal.SIGTERM, None)
        while live.service.state != "draining":
            await asyncio.sleep(0.01)
        await send(socket, "user_message", text="go", id="late")
        ends = [(await collect(socket)).terminal for _ in range(3)]
        assert [("waiting", "error"), ("late", "error"), ("running", "response_complete")] == [
            (end["id"], end["type"]) for end in ends
        ]
        assert ["shutting_down"] * 2 == [end["error"]["code"] for end in ends[:2]]
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert 1 == len(engine.requests)


async def test_the_drain_ends() -> None:
    """A response that outlasts DRAIN_TIMEOUT ends by an error that says so, and the engine is freed."""
    engine = ScriptedEngine(lambda _: ["word "] * 100_000, tokens_per_second=100, models=())
    async with live_service(engine, {"DRAIN_TIMEOUT": "0.3"}) as live, live.connect() as socket:
        await start(socket)
        await send(socket, "user_message", text="go")
        await receive(socket)
        began = time.monotonic()
        live.server.handle_exit(signal.SIGTERM, None)
        cut = (await collect(socket)).terminal
        assert ("shutting_down", True) == (cut["error"]["code"], cut["terminal"])
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert 3001 == closed.value.rcvd.code  # type: ignore[union-attr]
        assert time.monotonic() - began < 2
    assert 0 == engine.running


async def test_a_second_signal_cuts() -> None:
    """Who does not want to wait for the drain sends the signal again."""
    engine = ScriptedEngine(lambda _: ["word "] * 100_000, tokens_per_second=100, models=())
    async with live_service(engine, {"DRAIN_TIMEOUT": "60"}) as live, live.connect() as socket:
        await start(socket)
        await send(socket, "user_message", text="go")
        await receive(socket)
        live.server.handle_exit(signal.SIGTERM, None)
        await receive(socket)
        live.server.handle_exit(signal.SIGTERM, None)
        assert "shutting_down" == (await collect(socket)).terminal["error"]["code"]
        with pytest.raises(ConnectionClosed):
            await socket.recv()


async def _slowest(urls: list[str], seconds: float) -> dict[str, float]:
    """Ask each address again and again; returns the longest time each took, in milliseconds."""
    slowest = dict.fromkeys(urls, 0.0)
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(trust_env=False) as client:
        while time.monotonic() < end:
            for url in urls:
                began = time.monotonic()
                (await client.get(url)).raise_for_status()
                slowest[url] = max(slowest[url], 1000 * (time.monotonic() - began))
            await asyncio.sleep(0.02)
    return slowest


async def _stream(live: Live) -> None:
    async with live.connect() as socket:
        await start(socket)
        await send(socket, "user_message", text="go")
        await collect(socket)


async def test_probes_answer_while_100_streams_run() -> None:
    """Health on both ports is answered while 100 sessions stream; the slowest answer of each is printed."""
    engine = ScriptedEngine(lambda _: ["word "] * 100, tokens_per_second=50, models=())
    async with live_service(engine, {"LLM_MAX_CONNECTIONS": "100"}) as live, asyncio.TaskGroup() as tasks:
        for _ in range(100):
            tasks.create_task(_stream(live))
        while engine.running < 100:
            await asyncio.sleep(0.01)
        urls = [live.url + "/health", live.url + "/stats"]
        urls += [live.monitoring_url + path for path in ("/health", "/health/live", "/health/ready", "/metrics")]
        slowest = await _slowest(urls, 1.0)
        assert 100 == engine.running
    print()
    for url, milliseconds in slowest.items():
        print(f"{url}: at most {milliseconds:.1f} ms")
