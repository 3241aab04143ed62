"""A scripted engine that says as many words as it is asked for, what it heard, and a client that never reads."""

import asyncio
import socket as sockets
import struct
import time
from collections.abc import Iterator

from llm_service.engines.scripted import ScriptedEngine
from llm_service.generation import GenerationRequest


def words(request: GenerationRequest) -> Iterator[str]:
    """Answer with the number of words that the user's message names, each with the message's tag."""
    tag, count = request.messages[-1].content.split()
    return (f"{tag}{number} " for number in range(int(count)))


def text(tag: str, count: int) -> str:
    return "".join(f"{tag}{number} " for number in range(count))


def scripted(tokens_per_second: float) -> ScriptedEngine:
    return ScriptedEngine(words, tokens_per_second=tokens_per_second, models=())


def history(engine: ScriptedEngine) -> list[tuple[str, str]]:
    """Return what the engine was last asked, without the system prompt."""
    system, *said = engine.requests[-1].messages
    assert "system" == system.role
    return [(message.role, message.content) for message in said]


async def idle(engine: ScriptedEngine) -> float:
    """Wait until nothing runs in the engine; returns the seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(5):
        while engine.running:
            await asyncio.sleep(0.001)
    return time.monotonic() - began


async def handshake(port: int) -> sockets.socket:
    """Open a WebSocket by hand, on a socket that takes little and is never read."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", port))
    await loop.sock_sendall(
        raw,
        b"GET /ws/llm HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    assert b"101" in await loop.sock_recv(raw, 4096)
    return raw


def masked(message: str) -> bytes:
    data = message.encode()
    head = struct.pack("!BB", 0x81, 0x80 | len(data)) if len(data) < 126 else struct.pack("!BBH", 0x81, 0xFE, len(data))
    return head + b"\0\0\0\0" + data
