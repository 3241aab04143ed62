"""Frames that no client would send, from clients nobody knows (NATS CVE-2026-27889, CVE-2026-33219), and bombs."""

import asyncio
import socket
import zlib
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import pytest

from llm_service import protocols
from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, ask, live_service, start
from tests.processes import ServiceProcess, service_process
from tests.security.raw import closing_code, exchange, frame, open_raw, to_the_end, upgrade

SOCKETS = 1000


@pytest.fixture
async def live() -> AsyncGenerator[Live, None]:
    environment = {"API_KEYS": "right", "GREETING_DELAY_MS": "60000"}
    async with live_service(ScriptedEngine(models=(), tokens_per_second=10_000), environment) as running:
        yield running
        async with asyncio.timeout(10):
            await running.service.empty.wait()


@pytest.mark.parametrize("length", [65_537, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("first", [0x81, 0x82, 0x01], ids=["text", "binary", "fragment"])
async def test_lengths(live: Live, length: int, first: int) -> None:
    """A length above the limit, or none that RFC 6455 has, closes the connection before any of it has come."""
    reader, writer = await open_raw(live.port)
    writer.write(frame(b"x", first=first, length=length))
    assert closing_code(await to_the_end(reader)) in (1002, 1009)
    writer.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"\x00" * 126, first=0x89), 1002),
        (frame(b"", first=0x09), 1002),
        (frame(b"{}", first=0xC1), 1002),
        (frame(b"{}", first=0x83), 1002),
        (frame(b"{}", first=0x80), 1002),
        (b"\x81\x02{}", 1002),
        (frame(b"\x00", first=0x88), 1002),
        (frame(b"\x03\xec", first=0x88), 1002),
    ],
    ids=[
        "long ping",
        "ping in parts",
        "compressed",
        "unknown opcode",
        "no beginning",
        "unmasked",
        "half a code",
        "1004",
    ],
)
async def test_frames_against_the_rules(live: Live, sent: bytes, code: int) -> None:
    """Frames that RFC 6455 forbids close the connection with its code; the service goes on."""
    reader, writer = await open_raw(live.port)
    writer.write(sent)
    assert code == closing_code(await to_the_end(reader))
    writer.close()
    async with live.connect(additional_headers={"X-API-Key": "right"}) as decent:
        await start(decent)
        assert "response_complete" == (await ask(decent, "Hello.")).terminal["type"]


async def test_compression_is_not_offered(live: Live) -> None:
    """Whoever asks for permessage-deflate does not get it."""
    answer = await exchange(
        live.port, upgrade({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"})
    )
    assert b" 101 " in answer
    assert b"extensions" not in answer.lower()


async def test_two_million_empty_fragments(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message in endless empty fragments is cut off in time, whatever it weighs."""
    monkeypatch.setattr(protocols, "MESSAGE_TIMEOUT", 0.5)
    reader, writer = await open_raw(live.port)
    ended = asyncio.create_task(to_the_end(reader))
    writer.write(frame(b"", first=0x01))
    empty = frame(b"", first=0x00) * 1000
    sent = 0
    async with asyncio.timeout(60):
        while not ended.done() and sent < 2_000_000:
            writer.write(empty)
            sent += 1000
            await asyncio.wait({ended}, timeout=0.005)
    assert ended.done()
    writer.close()


def rss(service: ServiceProcess) -> float:
    """Return what the service's process holds, in MiB."""
    held: float = psutil.Process(service.process.pid).memory_info().rss / 2**20
    return held


async def unnamed(service: ServiceProcess, count: int) -> list[socket.socket]:
    """Open so many WebSockets that have yet to say who they are."""
    loop, opened = asyncio.get_running_loop(), []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        await loop.sock_connect(one, ("127.0.0.1", service.port))
        await loop.sock_sendall(one, upgrade())
        opened.append(one)
        assert b" 101 " in await loop.sock_recv(one, 4096)
    return opened


def test_memory_before_anybody_said_who_he_is(tmp_path: Path) -> None:
    """A thousand sockets without a key, and almost a whole message on each, take no more than the limits say, and give
    it back; the figures are printed."""
    environment = {"API_KEYS": "right", "LLM_MAX_CONNECTIONS": str(SOCKETS), "FIRST_MESSAGE_TIMEOUT": "120"}
    with service_process(tmp_path, environment=environment | {"LOG_LEVEL": "ERROR"}) as service:
        service.wait_until(lambda: service.get("/health/ready"), "ready")
        asyncio.run(_fill(service))


async def _fill(service: ServiceProcess) -> None:
    warm = await unnamed(service, 20)
    before = rss(service)
    sockets = await unnamed(service, SOCKETS - 20)
    idle = rss(service)
    loop, part = asyncio.get_running_loop(), frame(b"x" * 60_000, length=65_000)
    for each in sockets:
        await loop.sock_sendall(each, part)
    await asyncio.to_thread(service.wait_until, lambda: service.get("/health/live"), "alive")
    full = rss(service)
    for each in (*warm, *sockets):
        each.close()
    one_idle, one_full = (idle - before) * 1024 / len(sockets), (full - before) * 1024 / len(sockets)
    print(
        f"\n{len(sockets)} sockets without a key: {one_idle:.1f} KiB each, {one_full:.1f} KiB with 60 KB of a message"
    )
    assert one_idle < 64
    assert one_full < 64 + 2 * 64  # one message of 64 KiB, while it is put together


def test_a_decompression_bomb(tmp_path: Path) -> None:
    """A frame that would inflate to 250 MiB is refused for what it is, and costs the process less than 5 MiB."""
    with service_process(tmp_path, environment={"LOG_LEVEL": "ERROR"}) as service:
        service.wait_until(lambda: service.get("/health/ready"), "ready")
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = squeeze.compress(bytes(250 * 2**20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        grown, codes = asyncio.run(_throw(service, bomb[:60_000]))
    assert {1002} == codes
    assert grown < 5
    print(f"\n20 frames that inflate to 60 MiB and more: RSS +{grown:.1f} MiB")


async def _throw(service: ServiceProcess, bomb: bytes) -> tuple[float, set[int | None]]:
    extension = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    codes = set[int | None]()
    for number in range(25):
        if number == 5:
            before = rss(service)
        reader, writer = await open_raw(service.port, extension)
        writer.write(frame(bomb, first=0xC1))
        codes.add(closing_code(await to_the_end(reader)))
        writer.close()
    return rss(service) - before, codes
