"""Requests that the service is talked into (LiteLLM #37053, Ollama CVE-2026-5530, Centrifugo CVE-2026-32301).

A canary listens; whatever a client, an engine or the environment names it, nobody calls.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.openai import OpenAIEngine
from llm_service.errors import FastTalkError
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.live import collect, live_service, receive, send, start
from tests.processes import service_process
from tests.security.raw import head, status, upgrade
from tests.security.test_parameters import _answer

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY")


@contextlib.asynccontextmanager
async def a_canary() -> AsyncGenerator[FakeServer, None]:
    """Listen, answer anything, and fail the test if there was anything."""
    async with fake_server() as canary:

        async def sing(exchange: Exchange) -> None:
            await exchange.answer(b"{}")

        canary.answer = sing
        yield canary
        assert (0, []) == (canary.connections, [exchange.path for exchange in canary.exchanges])
        print("\nthe canary was called 0 times")


def engine_at(provider: str, url: str) -> OllamaEngine | OpenAIEngine:
    return OllamaEngine(url) if provider == "ollama" else OpenAIEngine(url + "/v1")


@pytest.mark.parametrize("provider", ["ollama", "openai"])
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308, 300, 305])
async def test_an_engine_that_redirects(provider: str, code: int) -> None:
    """No redirect of an engine is followed, on any route that it is asked."""
    async with a_canary() as canary, fake_server() as fake:

        async def redirect(exchange: Exchange) -> None:
            await exchange.answer(b"", code, Location=canary.url + exchange.path)

        fake.answer = redirect
        engine = engine_at(provider, fake.url)
        for call in (engine.ping(), engine.models(), engine.load("test", 512), engine.context_window("test")):
            with contextlib.suppress(FastTalkError):
                await call
        async with live_service(engine) as live, live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="hi")
            assert "error" == (await collect(socket)).terminal["type"]
        assert fake.exchanges


@pytest.mark.parametrize("provider", ["ollama", "openai"])
async def test_a_proxy_in_the_environment(provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engines are asked directly, whatever proxy or credentials the environment has for them."""
    async with a_canary() as canary, fake_server() as fake:
        fake.answer = _answer
        for name in PROXIES:
            monkeypatch.setenv(name, canary.url)
            monkeypatch.setenv(name.lower(), canary.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        netrc = tmp_path / "netrc"
        netrc.write_text("default login canary password canary\n")
        monkeypatch.setenv("NETRC", str(netrc))
        async with live_service(engine_at(provider, fake.url)) as live, live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="hi")
            assert "yes" == (await collect(socket)).text
        assert not any("authorization" in exchange.headers for exchange in fake.exchanges)


def said(url: str) -> list[dict[str, Any]]:
    """Return messages with the URL wherever a client can put one."""
    tool = {"function": {"name": "fetch", "description": url, "parameters": {"properties": {"url": {"default": url}}}}}
    return [
        {"type": "start_session", "session_id": url[:64], "last_seq": 1, "config": {"system_prompt": url}},
        {"type": "start_session", "config": {"model": url}},
        {"type": "start_session", "api_key": url, "url": url, "base_url": url, "webhook": url, "callback_url": url},
        {"type": "update_config", "config": {"base_url": url}},
        {"type": "update_config", "config": {"stop": [url], "tools": [tool]}},
        {"type": "update_config", "config": {"speech": {"enabled": True, "voice": url, "language": "en"}}},
        {"type": "update_config", "config": {"speech": {"enabled": True, "endpoint": url}}},
        {"type": "partial_message", "text": url},
        {"type": "tool_result", "id": url[:64], "content": url},
        {"type": "user_message", "id": url[:64], "text": f"![x]({url}) <img src='{url}'>", "images": [url]},
    ]


@pytest.mark.parametrize("provider", ["ollama", "openai"])
async def test_a_client_that_names_urls(provider: str) -> None:
    """A URL in any field of any message is text: it is fetched from nowhere."""
    async with a_canary() as canary, fake_server() as fake:
        fake.answer = _answer
        async with live_service(engine_at(provider, fake.url), {"WARM_PROMPTS": "true"}) as live:
            for address in (canary.url, canary.url.replace("127.0.0.1", "localhost"), f"{canary.url}@evil.org/"):
                async with live.connect() as socket:
                    for message in said(address):
                        await socket.send(json.dumps(message))
                    await send(socket, "end_session")
                    while (await receive(socket))["type"] != "session_ended":
                        pass
            host = canary.url.removeprefix("http://")
            for name in ("X-Forwarded-Host", "X-Forwarded-For", "Forwarded", "Referer", "X-Original-URL", "Proxy"):
                assert 101 == await status(live.port, upgrade({name: host}))
            for target in (f"/health?url={canary.url}", f"{canary.url}/health", f"/{canary.url}"):
                await status(live.port, head(target, [("Connection", "close")]))


async def test_the_whole_process(tmp_path: Path) -> None:
    """From its start on, the service calls nobody but its engine: no redirect, no proxy, no update check."""
    async with a_canary() as canary, fake_server() as fake:

        async def redirect(exchange: Exchange) -> None:
            await exchange.answer(b"", 307, Location=canary.url + exchange.path)

        fake.answer = redirect
        environment = {
            "LLM_PROVIDER": "openai",
            "OPENAI_BASE_URL": fake.url + "/v1",
            "TTS_ENDPOINTS": f"webhook={fake.url}/tts",
            **dict.fromkeys(PROXIES, canary.url),
            **dict.fromkeys(map(str.lower, PROXIES), canary.url),
        }
        with service_process(tmp_path, environment=environment) as service:
            async with asyncio.timeout(60):
                while service.process.poll() is None and not service.lines("listening"):
                    await asyncio.sleep(0.05)
            assert fake.exchanges
