"""The monitoring port."""

import shutil
import subprocess
from collections.abc import AsyncGenerator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_service import __version__
from llm_service.config import Settings
from llm_service.engines.scripted import ScriptedEngine
from llm_service.monitoring import create_monitoring_app
from llm_service.service import Service
from tests.live import Live, ask, live_service, send, start


@pytest.fixture
async def live() -> AsyncGenerator[Live, None]:
    async with live_service(ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=())) as running:
        yield running


@pytest.fixture
async def client(live: Live) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=live.monitoring_url, trust_env=False) as http:
        yield http


async def test_health(client: httpx.AsyncClient) -> None:
    """`/health` has FastTalk 1.x's keys, with real figures."""
    body = (await client.get("/health")).json()
    assert "healthy" == body["status"]
    assert {"cpu_percent", "memory_percent", "memory_available_gb"} == set(body["system"])
    assert {"requests", "generations", "errors", "total_tokens_generated"} == set(body["metrics"])


async def test_ready_and_live(client: httpx.AsyncClient) -> None:
    """A service that runs is live and ready."""
    assert {"status": "live"} == (await client.get("/health/live")).json()
    assert {"status": "ready"} == (await client.get("/health/ready")).json()


async def test_info(client: httpx.AsyncClient) -> None:
    """`/info` says what runs here and why."""
    body = (await client.get("/info")).json()
    assert ("llm-service", __version__) == (body["service"], body["version"])
    assert "a test chose it" == body["provider_reason"]


async def test_metrics_count_what_was_done(live: Live, client: httpx.AsyncClient) -> None:
    """After a response, a cancel and an error the series say so; promtool has nothing to complain about."""
    async with live.connect() as socket:
        await start(socket)
        await ask(socket, "hello")
        await socket.send("{")
        await send(socket, "cancel")
        text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    pair = (("engine", "scripted"), ("model", "test"))
    assert 1 == samples["fasttalk_time_to_first_token_seconds_count", *pair]
    assert 2 == samples["fasttalk_tokens_total", *pair, ("token_type", "output")]
    assert 1 == samples["fasttalk_errors_total", ("category", "validation")]
    assert 1 == samples[("fasttalk_sessions_total",)]
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
        )
        assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)


async def test_before_the_engine_is_open() -> None:
    """While the service starts it is live and not ready, and its other routes answer."""
    app = create_monitoring_app(Service(Settings.load({})))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert 200 == (await http.get("/health/live")).status_code
        ready = await http.get("/health/ready")
        assert (503, "the service is starting") == (ready.status_code, ready.json()["reason"])
        assert "starting" == (await http.get("/health")).json()["status"]
        assert "starting" == (await http.get("/info")).json()["state"]
        assert 200 == (await http.get("/metrics")).status_code
