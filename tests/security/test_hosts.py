"""DNS rebinding: names of others that point here (Ollama CVE-2024-28224), and Host headers that lie about the path."""

from collections.abc import AsyncGenerator

import pytest

from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, live_service
from tests.security.raw import exchange, head, status, upgrade

OTHERS = ["evil.org", "evil.org:{port}", "localhost.evil.org", "127.0.0.1.evil.org:{port}", "talk.example.com.evil.org"]
LIES = ["localhost/health?", "localhost/ws/llm", "localhost#", "user@localhost", "localhost:80:80"]


@pytest.fixture
async def live() -> AsyncGenerator[Live, None]:
    async with live_service(ScriptedEngine(models=()), {"ALLOWED_HOSTS": "talk.example.com"}) as running:
        yield running


@pytest.mark.parametrize("host", [*OTHERS, *LIES])
async def test_foreign_names_get_nothing(live: Live, host: str) -> None:
    """Under a name that anybody may own no route of either port answers, nor does the WebSocket."""
    for port, targets in (
        (live.port, ["/", "/health", "/stats", "/docs", "/openapi.json", "/nothing"]),
        (live.monitoring_port, ["/health", "/health/live", "/metrics", "/info"]),
    ):
        named = host.format(port=port)
        for target in targets:
            answer = await exchange(port, head(target, [("Connection", "close")], host=named))
            # What is no host at all the parser refuses before us.
            assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (target, answer)
            assert b"test" not in answer  # the model's name
    assert await status(live.port, upgrade(host=host.format(port=live.port))) in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "talk.example.com", "llm-service", "llm.internal"])
async def test_our_names_do(live: Live, host: str) -> None:
    """Under what nobody else can own both ports answer, with and without the port."""
    for name in (host, f"{host}:{live.port}"):
        assert 200 == await status(live.port, head("/health", host=name))
        assert 200 == await status(live.monitoring_port, head("/health/live", host=name))
        assert 101 == await status(live.port, upgrade(host=name))


async def test_the_path_is_what_was_asked_for(live: Live) -> None:
    """A proxy's absolute target, and headers that rewrite one, do not change which route answers."""
    assert 200 == await status(live.port, head("/health", [("X-Original-URL", "/stats"), ("X-Rewrite-URL", "/stats")]))
    assert 404 == await status(live.port, head("/%2e%2e/health"))
    assert 404 == await status(live.port, head("//health"))


async def test_the_error_says_what_to_do(live: Live) -> None:
    """The operator who sees it learns the setting."""
    answer = await exchange(live.port, head("/health", host="llm.example.org"))
    assert b'"code":"host_not_allowed"' in answer
    assert b"ALLOWED_HOSTS" in answer
