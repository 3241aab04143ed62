"""The routes beside the WebSocket."""

from collections.abc import AsyncGenerator

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from llm_service import __version__
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnreachable, GenerationFailed
from tests.live import Live, ask, live_service, start


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=())


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    async with live_service(engine) as running:
        yield running


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(trust_env=False) as http:
        yield http


async def test_root(live: Live, client: httpx.AsyncClient) -> None:
    """`/` says what this is."""
    body = (await client.get(live.url)).json()
    assert ("FastTalk LLM Service", "ready", __version__) == (body["service"], body["status"], body["version"])


async def test_health(live: Live, client: httpx.AsyncClient) -> None:
    """`/health` has FastTalk 1.x's keys, and 200 while the engine answers."""
    async with live.connect() as socket:
        await start(socket)
        response = await client.get(live.url + "/health")
    assert 200 == response.status_code
    body = response.json()
    assert ("healthy", "test", True) == (body["status"], body["model"], body["backend_connection"])
    assert (1, 1) == (body["active_connections"], body["active_sessions"])
    assert "ollama_connection" in body


async def test_health_when_the_engine_is_gone(live: Live, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """An engine that does not answer makes `/health` 503 and not ready, with the reason."""
    engine.down = True
    await live.service.health.check()
    response = await client.get(live.url + "/health")
    assert 503 == response.status_code
    body = response.json()
    assert ("degraded", "The scripted engine was told to be down.") == (body["status"], body["problem"])
    ready = await client.get(live.monitoring_url + "/health/ready")
    assert (503, "The scripted engine was told to be down.") == (ready.status_code, ready.json()["reason"])
    assert 200 == (await client.get(live.monitoring_url + "/health/live")).status_code


async def test_stats(live: Live, client: httpx.AsyncClient) -> None:
    """`/stats` counts what was done, in FastTalk 1.x's shape."""
    async with live.connect() as socket:
        await start(socket)
        await ask(socket, "hello")
        body = (await client.get(live.url + "/stats")).json()
    assert {"provider", "connections", "conversations", "errors", "engines", "queue"} == set(body)
    engine = {"running": 0, "max_running": 1024, "unwanted": 0, "breaker": "closed"}
    assert {"scripted": engine} == body["engines"]
    assert {"waiting": 0, "max_waiting": 64} == body["queue"]
    assert 1 == body["connections"]["total_generations_completed"]
    assert 2 == body["connections"]["total_tokens_generated"] == body["conversations"]["total_tokens_generated"]


async def test_an_engine_that_keeps_failing(live: Live, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """After five failures clients get `circuit_open` at once; `/stats` and the metrics say so. The turns are undone."""
    name, codes = engine.name, []
    async with live.connect() as socket:
        await start(socket)
        engine.down = True
        for _ in range(6):
            error = (await ask(socket, "hello")).terminal["error"]
            codes.append(error["code"])
        breakers = (await client.get(live.url + "/stats")).json()["errors"]["circuit_breakers"]
        metrics = (await client.get(live.monitoring_url + "/metrics")).text
    assert [*["engine_unreachable"] * 5, "circuit_open"] == codes
    assert 0 < error["retry_after"] <= 10
    assert "open" == breakers[name]["state"]
    assert f'fasttalk_breaker_state{{engine="{name}",state="open"}} 1.0' in metrics
    assert f'fasttalk_breaker_state{{engine="{name}",state="closed"}} 0.0' in metrics
    assert f'fasttalk_breaker_transitions_total{{engine="{name}",state="open"}} 1.0' in metrics
    assert 5 == len(engine.requests)
    assert 0 == live.service.manager.totals().turns


async def test_failures_before_the_first_token_are_not_seen(client: httpx.AsyncClient) -> None:
    """An engine that fails twice before it begins is asked again; the client gets the whole text, the metrics count."""
    engine = ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=())
    engine.faults += [Fault(0, EngineUnreachable("busy")), Fault(0, GenerationFailed("broke"))]
    async with live_service(engine, {"ENGINE_RETRIES": "2"}) as live, live.connect() as socket:
        await start(socket)
        answer = await ask(socket, "hello")
        metrics = (await client.get(live.monitoring_url + "/metrics")).text
    assert ("a b ", "response_complete") == (answer.text, answer.terminal["type"])
    assert f'fasttalk_retries_total{{engine="{engine.name}"}} 2.0' in metrics


async def test_an_engine_that_stalls() -> None:
    """A stream that opens and falls silent ends by a typed error in time, and the engine's work with it."""
    engine = ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=())
    engine.faults += [Fault(0), Fault(1)]
    deadlines = {"FIRST_TOKEN_TIMEOUT": "0.05", "TOKEN_TIMEOUT": "0.05"}
    async with live_service(engine, deadlines) as live, live.connect() as socket:
        await start(socket)
        codes = [(await ask(socket, "hello")).terminal["error"]["code"] for _ in range(2)]
        assert "a b " == (await ask(socket, "hello")).text
    assert (["first_token_timeout", "stream_stalled"], 0) == (codes, engine.running)


async def test_no_page_of_another_site_can_read(live: Live, client: httpx.AsyncClient) -> None:
    """No CORS header is sent: other sites' pages may not read what the routes say."""
    response = await client.get(live.url + "/stats", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert "server" not in response.headers


async def test_an_allowed_page_can_read(engine: ScriptedEngine, client: httpx.AsyncClient) -> None:
    """Pages of ALLOWED_ORIGINS may read the routes, and others still may not."""
    async with live_service(engine, {"ALLOWED_ORIGINS": "https://app.example"}) as live:
        allowed = await client.get(live.url + "/stats", headers={"Origin": "https://app.example"})
        other = await client.get(live.url + "/stats", headers={"Origin": "https://evil.example"})
    assert "https://app.example" == allowed.headers["access-control-allow-origin"]
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
async def test_a_foreign_page_cannot_connect(live: Live, origin: str) -> None:
    """A handshake from a page of another origin is refused with 403, and says what to do."""
    with pytest.raises(InvalidStatus) as refused:
        await live.connect(origin=origin)
    assert 403 == refused.value.response.status_code
    assert b"ALLOWED_ORIGINS" in (refused.value.response.body or b"")


async def test_own_and_allowed_pages_can(engine: ScriptedEngine) -> None:
    """The service's own loopback origin and the configured ones may connect."""
    async with live_service(engine, {"ALLOWED_ORIGINS": "https://app.example"}) as live:
        for origin in (f"http://localhost:{live.port}", "https://app.example"):
            async with live.connect(origin=origin) as socket:
                await start(socket)


async def test_a_wrong_key_is_refused_in_the_handshake(engine: ScriptedEngine) -> None:
    """A wrong key is 401 before the WebSocket is there."""
    async with live_service(engine, {"API_KEYS": "right"}) as live:
        with pytest.raises(InvalidStatus) as refused:
            await live.connect(additional_headers={"Authorization": "Bearer wrong"})
        assert 401 == refused.value.response.status_code


async def test_another_path_is_refused(live: Live) -> None:
    """A WebSocket to another path is refused at the handshake with 403, as FastTalk 1.x does."""
    from websockets.asyncio.client import connect

    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{live.port}/ws/other", proxy=None)
    assert 403 == refused.value.response.status_code
