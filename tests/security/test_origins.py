"""Cross-site WebSocket hijacking: pages of other sites that connect with their user's browser (GHSA-f53g-frr2-jhpf)."""

from collections.abc import AsyncGenerator

import pytest

from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, live_service
from tests.security.raw import exchange, status, upgrade

ALLOWED = "https://app.example.com"


@pytest.fixture
async def live() -> AsyncGenerator[Live, None]:
    async with live_service(ScriptedEngine(models=()), {"ALLOWED_ORIGINS": ALLOWED}) as running:
        yield running


def variants(port: int) -> list[str]:
    """Forty origins that look like one that is allowed."""
    return [
        "http://app.example.com",
        "https://app.example.com:443",
        "https://app.example.com:8443",
        "https://app.example.com/",
        "https://app.example.com/chat",
        "https://app.example.com?x",
        "https://app.example.com#x",
        "https://app.example.com.",
        "https://app.example.com.evil.org",
        "https://app.example.com@evil.org",
        "https://evil.org@app.example.com",
        "https://evil.org/https://app.example.com",
        "https://evil.org#https://app.example.com",
        "https://xapp.example.com",
        "https://app-example.com",
        "https://example.com",
        "https://*.example.com",
        "https://app.example.co",
        "https://app.example.comm",
        "https://APP.example.com",
        "HTTPS://app.example.com",
        "https:app.example.com",
        "https:/app.example.com",
        "app.example.com",
        "https://app.example.com, https://app.example.com",
        "https://app.example.com https://evil.org",
        "https://app.example.com%00",
        "https://app.example.com%2eevil.org",
        "https://\u0430pp.example.com".encode().decode("latin-1"),
        "null",
        "*",
        "file://",
        "javascript://app.example.com",
        f"https://localhost:{port}",
        "http://localhost",
        f"http://localhost:{port + 1}",
        f"http://localhost.evil.org:{port}",
        f"http://127.0.0.2:{port}",
        f"http://127.1:{port}",
        f"http://0.0.0.0:{port}",
    ]


async def test_only_exact_matches_pass(live: Live) -> None:
    """Of forty variants of what is allowed none gets through the handshake; each exact one does."""
    others = variants(live.port)
    assert 40 == len(set(others))
    refused = {origin: await status(live.port, upgrade({"Origin": origin})) for origin in others}
    assert {403} == set(refused.values()), refused
    own = [ALLOWED, *(f"http://{host}:{live.port}" for host in ("localhost", "127.0.0.1", "[::1]"))]
    assert [101] * 4 == [await status(live.port, upgrade({"Origin": origin})) for origin in own]
    print(f"\n{len(others)} variants of allowed origins: 0 passed")


async def test_an_empty_origin_is_none_of_ours(live: Live) -> None:
    """A header without a value is not the same as no header, which no browser leaves out."""
    assert 403 == await status(live.port, upgrade({"Origin": ""}))
    assert 101 == await status(live.port, upgrade())


async def test_other_names_for_it_do_not_count(live: Live) -> None:
    """What only resembles the header is no way around it, and two of them are refused."""
    allowed, evil = f"Origin: {ALLOWED}\r\n".encode(), b"Origin: https://evil.org\r\n"
    request = upgrade().removesuffix(b"\r\n")
    assert 400 == await status(live.port, request + allowed + evil + b"\r\n")
    assert 400 == await status(live.port, request + allowed + allowed + b"\r\n")
    assert 403 == await status(live.port, request + evil + b"X-Forwarded-Host: app.example.com\r\n\r\n")
    assert 403 == await status(live.port, request + evil + b"Sec-WebSocket-Origin: " + ALLOWED.encode() + b"\r\n\r\n")


async def test_other_pages_read_nothing(live: Live) -> None:
    """The HTTP routes tell browsers to show their answers to pages of the allowed origins alone."""
    for origin, shown in ((ALLOWED, True), ("https://evil.org", False), ("null", False)):
        request = upgrade({"Origin": origin}, target="/stats").replace(b"Upgrade: websocket\r\n", b"")
        request = request.replace(b"Connection: Upgrade", b"Connection: close")
        assert shown == (f"access-control-allow-origin: {origin}".encode() in await exchange(live.port, request))
