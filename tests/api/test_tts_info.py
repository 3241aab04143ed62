"""`/debug/tts-info`, which the mega-service's pages look at."""

from typing import Any

import httpx
import pytest

from llm_service.engines.scripted import ScriptedEngine
from tests.engines.fake_server import FakeServer, fake_server
from tests.live import Live, live_service
from tests.processes import free_port
from tests.speech import doubles


async def info(live: Live) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        body: dict[str, Any] = (await client.get(f"{live.url}/debug/tts-info")).json()
    return body


def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda _: ["Hello."], tokens_per_second=10_000, models=())


@pytest.mark.parametrize("kind", ["gpt_sovits", "opea"])
async def test_a_tts_that_is_well_is_said_to_be(kind: str) -> None:
    """It answers its probe, nothing is spoken for it, and the page finds the word it looks for."""
    tts: FakeServer
    async with fake_server() as tts:
        double = doubles.GPTSoVITS() if kind == "gpt_sovits" else doubles.OPEA()
        tts.answer = double
        async with live_service(engine(), {"TTS_ENDPOINTS": f"{kind}={tts.url}"}) as live:
            await live.service.speech.check()
            body = await info(live)

    assert tts.url == body["base_url"]
    assert {"base_url", "status", "health_check", "test_request", "endpoints"} == set(body)
    assert ("online", True) == (body["status"], body["health_check"]["healthy"])
    assert ["WORKING"] == [each["post_status"]["result"] for each in body["endpoints"].values()]
    assert {"GET"} == {exchange.method for exchange in tts.exchanges}
    assert "/" not in {exchange.path for exchange in tts.exchanges}


async def test_one_of_two_is_down() -> None:
    """Each is told by its own name, and the one that speaks stands above; no credentials are shown."""
    async with fake_server() as tts:
        tts.answer = doubles.openai
        url = tts.url.replace("://", "://user:password@")
        endpoints = f"opea=http://127.0.0.1:{free_port()},openai={url}/v1"
        async with live_service(engine(), {"TTS_ENDPOINTS": endpoints}) as live:
            await live.service.speech.check()
            body = await info(live)

    assert "online" == body["status"]
    assert [False, True] == [each["healthy"] for each in body["endpoints"].values()]
    assert "connected to" in body["endpoints"]["1-opea"]["post_status"]["result"]
    assert f"{tts.url}/v1" == body["base_url"]
    assert "password" not in str(body)


async def test_none_answers() -> None:
    """A service whose TTS is down is not said to be online."""
    async with live_service(engine(), {"TTS_ENDPOINTS": f"opea=http://127.0.0.1:{free_port()}"}) as live:
        await live.service.speech.check()
        body = await info(live)

    assert ("error", False) == (body["status"], body["health_check"]["healthy"])
    assert "connected to" in body["health_check"]["problem"]


async def test_a_webhook_shows_its_host_alone() -> None:
    """Its path is often the secret that lets one call it."""
    async with fake_server() as hook:
        endpoint = f"webhook={hook.url.replace('://', '://user:password@')}/services/T0KEN"
        async with live_service(engine(), {"TTS_ENDPOINTS": endpoint}) as live:
            await live.service.speech.check()
            body = await info(live)

    assert ("online", hook.url) == (body["status"], body["base_url"])
    assert "T0KEN" not in str(body)
    assert "password" not in str(body)


async def test_without_a_tts() -> None:
    """There is a status, and what to do."""
    async with live_service(engine()) as live:
        body = await info(live)

    assert "error" == body["status"]
    assert "TTS_ENDPOINTS" in body["error"]
