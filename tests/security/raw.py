"""Requests written by hand: what no decent client would send."""

import asyncio
import contextlib
import struct
from collections.abc import Iterable, Mapping

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


def head(
    target: str, headers: Iterable[tuple[str, str]] = (), *, method: str = "GET", host: str = "localhost"
) -> bytes:
    """Return a request's head; with `host` "" there is no Host header."""
    lines = [f"{method} {target} HTTP/1.1", *([f"Host: {host}"] if host else []), *(f"{n}: {v}" for n, v in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def upgrade(headers: Mapping[str, str] | None = None, *, target: str = "/ws/llm", host: str = "localhost") -> bytes:
    """Return the head of a handshake with further headers."""
    return head(target, [*UPGRADE.items(), *(headers or {}).items()], host=host)


async def exchange(port: int, sent: bytes) -> bytes:
    """Send this; returns what comes until the peer closes or, where that was not asked for, is silent for a moment."""
    patience = 10.0 if b"Connection: close" in sent else 0.05
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(sent)
        async with asyncio.timeout(10):
            received = await reader.read(65_536)
            with contextlib.suppress(TimeoutError):
                while received and (more := await asyncio.wait_for(reader.read(65_536), patience)):
                    received += more
    writer.close()
    return received


async def status(port: int, sent: bytes) -> int:
    """Send a request and return the status of its answer; 0 if there was none."""
    answer = await exchange(port, sent)
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


async def open_raw(
    port: int, headers: Mapping[str, str] | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a WebSocket on a bare TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(upgrade(headers))
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def frame(data: bytes, *, first: int = 0x81, length: int | None = None) -> bytes:
    """Return a masked frame of a client; `length` is what its header says, whatever is in it."""
    said = len(data) if length is None else length
    if said < 126:
        header = struct.pack("!BB", first, 0x80 | said)
    elif said < 65_536:
        header = struct.pack("!BBH", first, 0xFE, said)
    else:
        header = struct.pack("!BBQ", first, 0xFF, said)
    return header + bytes(4) + data


async def to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Read until the peer closes or breaks the connection."""
    received = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                received += data
    return received


def closing_code(received: bytes) -> int | None:
    """Return the code of the closing frame at the end of what was received."""
    start = received.rfind(b"\x88")
    return int.from_bytes(received[start + 2 : start + 4]) if start >= 0 else None
