"""What uvicorn's protocols lack: deadlines, and a way to cut."""

import asyncio
import logging
import select
import socket
import time
from collections.abc import AsyncGenerator, Iterator

import pytest

from llm_service import protocols
from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, ask, live_service, start
from tests.talk import handshake, masked

UPGRADE = (
    b"GET /ws/llm HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture
async def live() -> AsyncGenerator[Live, None]:
    async with live_service(
        ScriptedEngine(models=(), tokens_per_second=10_000), {"HEADER_TIMEOUT": "0.3", "GREETING_DELAY_MS": "60000"}
    ) as running:
        yield running


async def until_closed(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """Read to the end; returns what came and the seconds it took."""
    began = time.monotonic()
    received = b""
    async with asyncio.timeout(5):
        try:
            while data := await reader.read(65_536):
                received += data
        except ConnectionResetError:
            pass
    return received, time.monotonic() - began


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 1000, UPGRADE],
    ids=["silence", "method", "headers", "one header", "upgrade"],
)
async def test_a_request_that_does_not_arrive(live: Live, sent: bytes) -> None:
    """A connection without a whole header is closed after HEADER_TIMEOUT, whatever part of it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(sent)
    received, seconds = await until_closed(reader)
    assert b"" == received
    assert 0.2 < seconds < 2
    writer.close()


async def test_a_header_that_trickles(live: Live) -> None:
    """Bytes that keep coming do not move the deadline."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)

    async def trickle() -> None:
        writer.write(b"GET / HTTP/1.1\r\n")
        for number in range(100):
            writer.write(b"X-%d: y\r\n" % number)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(trickle())
    received, seconds = await until_closed(reader)
    assert b"" == received
    assert seconds < 1.5
    task.cancel()
    writer.close()


async def test_the_second_request_has_the_same_deadline(live: Live) -> None:
    """On a connection that is kept open, a second header must arrive in time as the first must."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in await reader.readuntil(b"}")
    writer.write(b"GET / HT")
    _, seconds = await until_closed(reader)
    assert seconds < 2
    writer.close()


async def test_a_body_that_does_not_arrive(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body has a deadline, too."""
    monkeypatch.setattr(protocols, "BODY_TIMEOUT", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    _, seconds = await until_closed(reader)
    assert seconds < 2
    writer.close()


async def test_a_header_that_is_too_long(live: Live) -> None:
    """More than 32 KiB of headers is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(40)))
    received, _ = await until_closed(reader)
    assert received.startswith(b"HTTP/1.1 400")
    writer.close()


async def test_a_chunk_that_is_none(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """A body that breaks HTTP's rules ends the connection, and is no error of ours."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    await until_closed(reader)
    writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_message_in_endless_fragments(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is begun must be ended in time, however small its fragments are."""
    monkeypatch.setattr(protocols, "MESSAGE_TIMEOUT", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(UPGRADE + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x01\x80\0\0\0\0")

    async def fragments() -> None:
        for _ in range(100):
            writer.write(b"\x00\x80\0\0\0\0")
            await asyncio.sleep(0.02)

    task = asyncio.create_task(fragments())
    _, seconds = await until_closed(reader)
    assert seconds < 1.5
    task.cancel()
    writer.close()
    async with asyncio.timeout(5):
        await live.service.empty.wait()


async def test_a_websocket_outlives_the_deadlines(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines of requests and messages end with them: an idle WebSocket is left alone."""
    monkeypatch.setattr(protocols, "BODY_TIMEOUT", 0.2)
    monkeypatch.setattr(protocols, "MESSAGE_TIMEOUT", 0.2)
    async with live.connect() as socket:
        await start(socket)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await socket.recv()
        assert "response_complete" == (await ask(socket, "Hello.")).terminal["type"]


async def test_no_pong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that answers no ping is closed with 3012: connect again."""
    async with live_service(ScriptedEngine(models=()), {"PING_INTERVAL": "0.1", "PING_TIMEOUT": "0.2"}) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        received, _ = await until_closed(reader)
        assert b"\x88" + bytes([2 + len(b"no pong")]) + (3012).to_bytes(2, "big") + b"no pong" in received
        writer.close()


async def test_what_was_not_read_is_let_go() -> None:
    """A client that is cut off for reading nothing is reset: the kernel keeps nothing for it, and it need not read."""

    def long_words(_: object) -> Iterator[str]:
        return ("x" * 10_000 for _ in range(1000))

    engine = ScriptedEngine(long_words, tokens_per_second=5000, models=())
    environment = {"SEND_TIMEOUT": "0.2", "MAX_PENDING_BYTES": "67108864"}
    async with live_service(engine, environment) as live:
        frozen, loop = await handshake(live.port), asyncio.get_running_loop()
        await loop.sock_sendall(frozen, masked('{"type":"user_message","text":"go"}'))
        poll = select.poll()
        poll.register(frozen, 0)  # its end alone: there is much to read
        async with asyncio.timeout(10):
            while not poll.poll(0):
                await asyncio.sleep(0.01)
        assert 0 != frozen.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        frozen.close()
